"""The backend `fusion_jax` of lm-eval (arXiv 2405.14782): importing this file registers it.

    import fusion_jax.evals.harness.backend
    lm_eval.simple_evaluate("fusion_jax", {"pretrained": "runs/wrpo/model"}, tasks=["arc_easy"])

or, on the command line, `python -m fusion_jax.evals.harness --model fusion_jax --model_args pretrained=FOLDER --tasks
arc_easy`, which takes what `lm_eval` takes. The package finds no backends of others by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from fusion_jax.errors import InputError, quoted
from fusion_jax.evals.harness.reading import Pair, Reader, chat_text, with_template
from fusion_jax.evals.harness.scoring import Computing, loglikelihoods, rolling
from fusion_jax.evals.harness.writing import NEW_TOKENS, answers
from fusion_jax.hosts.agree import first_host
from fusion_jax.models.folder import Model
from fusion_jax.models.int8 import Weights
from fusion_jax.sampling.generate import decoding_mesh, load_to_sample
from fusion_jax.zoo import model_path

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from tqdm import tqdm
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] != "lm_eval":
        raise
    cure = "Install it: pip install -e '.[lm-eval]', or pip install lm-eval"
    raise InputError("the package lm-eval is not installed", cure=cure) from None

BATCH_SIZE = 32


@register_model("fusion_jax")
class FusionLM(TemplateLM):
    """A model of this package.

    Args:
      pretrained: a Hugging Face folder, a GGUF file, zoo:NAME, or a loaded model with a tokenizer.
      batch_size: texts at once, over all devices; "auto" stands for 32.
      max_length: positions that are used; 0: all of the model's.
      max_gen_toks: tokens of an answer, where the task does not say.
      mesh_tensor: see `decoding_mesh`; the rest of the devices share the texts.
      weights: "int8" holds the layers' matrices in int8.
      dtype: of the computation; None: bfloat16, on a CPU float32.
      add_bos_token, prefix_token_id: see `Reader`.
      seed: of sampled answers.
      max_batch_size, device: of lm-eval's own command line; the devices are jax's.
    """

    def __init__(
        self,
        pretrained: str | Model,
        *,
        batch_size: int | str | None = BATCH_SIZE,
        max_length: int = 0,
        max_gen_toks: int = NEW_TOKENS,
        mesh_tensor: int = 0,
        weights: Weights = "stored",
        dtype: str | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        seed: int = 0,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        model = pretrained
        if not isinstance(model, Model):
            model = load_to_sample(model_path(model, "pretrained"), mesh_tensor, weights=weights)
        tokenizer = model.reader
        if not model.config.decoder or model.config.head.labels:
            problem = f"{model.config.model_type} is no language model"
            raise InputError(problem, file=model.folder or None, cure="Give a model that writes text")
        self.model, self.tokenizer = model, tokenizer
        self.backend = "seq2seq" if model.config.encoder else "causal"
        self.reader = Reader(tokenizer, bool(model.config.encoder), add_bos_token, prefix_token_id)
        self.how = Computing(decoding_mesh(model.config, mesh_tensor), dtype, texts_at_once(batch_size), max_length)
        self.max_gen_toks, self.seed = max_gen_toks, seed

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        return self.reader.first

    @property
    def max_length(self) -> int:
        return self.how.positions(self.model)

    @property
    def batch_size(self) -> int:
        return self.how.batch_size

    @property
    def tokenizer_name(self) -> str:
        return (self.tokenizer.name_or_path or self.model.folder).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return list(self.reader.ids(string, add_special_tokens))

    def tok_decode(self, tokens: Iterable[int], skip_special_tokens: bool = True) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The chat template that is going to be applied; a name chooses one of several."""
        if isinstance(chat_template, str):
            self.reader = with_template(self.reader, chat_template)
        return super().chat_template(chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return chat_text(self.reader, chat_history, header=add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        asked = [request.args for request in requests]
        pairs = self.reader.pairs(asked)
        count = len(set(pairs))
        found = self._with_bar(
            "loglikelihood", count, disable_tqdm, lambda told: loglikelihoods(self.model, pairs, self.how, told)
        )
        return self._kept("loglikelihood", asked, found)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        return loglikelihoods(self.model, pairs, self.how)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        asked = [request.args for request in requests]
        texts = [self.reader.windows(text, self.max_length) for (text,) in asked]
        windows = len({pair for text in texts for pair in text})
        found = self._with_bar(
            "loglikelihood_rolling", windows, disable_tqdm, lambda told: rolling(self.model, texts, self.how, told)
        )
        return self._kept("loglikelihood_rolling", asked, found)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        asked = [request.args for request in requests]
        found = self._with_bar(
            "generate_until", len(asked), disable_tqdm,
            lambda told: answers(
                self.model, self.reader, asked, self.how, new_tokens=self.max_gen_toks, seed=self.seed, progress=told
            ),
        )  # fmt: skip
        return self._kept("generate_until", asked, found)

    def get_model_info(self) -> dict[str, Any]:
        """What results.json says of the model."""
        return {"model": repr(self.model), "model_dtype": self.model.file_dtype}

    def _with_bar(
        self, name: str, total: int, quiet: bool, compute: Callable[[Callable[[int], None]], list[Any]]
    ) -> list[Any]:
        """What `compute` gives, with a bar of what it says that is done."""
        with tqdm(total=total, desc=name, disable=quiet or not first_host()) as bar:
            return compute(lambda done: bar.update(done - bar.n) and None)

    def _kept(self, name: str, asked: Iterable[tuple[Any, ...]], found: list[Any]) -> list[Any]:
        """The results, also in lm-eval's cache of requests where there is one."""
        for args, one in zip(asked, found, strict=True):
            self.cache_hook.add_partial(name, args, one)
        return found


def texts_at_once(batch_size: int | str | None) -> int:
    """The number that lm-eval's --batch_size stands for.

    Raises:
      InputError: it is no positive number.
    """
    if batch_size is None or str(batch_size).startswith("auto"):
        return BATCH_SIZE
    if not str(batch_size).isdecimal() or not int(batch_size):
        raise InputError(f"{quoted(batch_size)} is out of range", field="batch_size", cure="Give 1 or more, or auto")
    return int(batch_size)
