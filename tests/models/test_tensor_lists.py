"""A family's list of tensors: what it forgets or confuses is refused before a weight is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

import fusion_jax as fj
from fusion_jax.errors import InputError
from fusion_jax.models.families import FAMILIES, check_tensors, config_from_hf, tensors_of
from tests.parity.checkpoints import CONFIGS, SMALL
from tests.small import small_model


@pytest.mark.parametrize(("wrong", "field", "problem"), [
    (lambda ts: [t for t in ts if t.path[-2:] != ("q", "kernel") or t.index != (1,)], "layers.q.kernel.1", "no tensor"),
    (lambda ts: [t for t in ts if t.path != ("final_norm", "scale")], "final_norm.scale", "no tensor"),
    (lambda ts: [replace(t, name="same") if t.path[-2:] == ("q", "kernel") else t for t in ts], "same",
     "two parameters, layers.q.kernel.0 and layers.q.kernel.1"),
    (lambda ts: [*ts, replace(ts[0], name="again")], "embed.embedding", "two tensors"),
    (lambda ts: [replace(t, path=("nowhere",)) if t.path == ("final_norm", "scale") else t for t in ts],
     "final_norm.scale", "no tensor"),
    (lambda ts: [*ts, replace(ts[0], name="more", path=("nowhere",))], "nowhere", "no parameter"),
])  # fmt: skip
def test_a_list_that_is_wrong_is_refused(wrong, field, problem, tmp_path, monkeypatch):
    model = small_model()
    right = tensors_of(model.config)
    with pytest.raises(InputError, match=problem) as refused:
        check_tensors(model.config, wrong(right))
    assert refused.value.field == field and "family llama" in str(refused.value)
    monkeypatch.setattr(FAMILIES["llama"], "tensors", lambda config: wrong(right))
    with pytest.raises(InputError, match=problem):
        fj.save(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_lists_every_parameter_once(name):
    family, options = CONFIGS[name]
    tensors_of(config_from_hf({"model_type": family, **SMALL, **options}))
