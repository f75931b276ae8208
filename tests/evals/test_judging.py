"""The arithmetic of judging beside the packages that publish it, verdicts read out of replies, and the page.

golden/judging.json holds numbers of alpaca-eval, scikit-learn and statsmodels; its "note" says how they were made.
golden/mt_bench_questions.jsonl are the questions of lm-sys/FastChat (Apache-2.0).
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import fusion_jax as fj
from experiments import judge
from fusion_jax.asking.contract import Candidate, Failure, Reply
from fusion_jax.errors import InputError
from fusion_jax.evals.judging.answers import answers_of, questions_of, shared_questions
from fusion_jax.evals.judging.bradley_terry import Battle, ranked, strengths, wins
from fusion_jax.evals.judging.length_control import Anchors, difficulties, fitted, length_controlled
from fusion_jax.evals.judging.preferences import discrete_win_rate, weighted_preference, win_rate
from fusion_jax.evals.judging.reliability import agreement, kappa, place_bias
from fusion_jax.evals.judging.turns import by_category
from fusion_jax.evals.judging.verdicts import UNREAD, grade_of, preference_of, rule_pair, rule_score, score_of
from fusion_jax.evals.judging.wording import WORDINGS, grade_question, pair_question, wording_of
from fusion_jax.intervals import Estimate, estimates, mean_estimate
from fusion_jax.jsonl import read_jsonl
from fusion_jax.rewards.verifiers import exact
from fusion_jax.runs.verdict_report import Told, result_sentence
from fusion_jax.runs.verdicts import Compared
from tests.asking.chat_server import Response, chat, refusal, serving
from tests.conftest import GOLDEN, golden_cases
from tests.small import attempt, fails, small_folder, write


class TestPublishedNumbers:
    @pytest.mark.parametrize(
        "case", golden_cases("judging", "length_controlled"), ids=lambda case: f"{len(case['preferences'])}"
    )
    def test_length_controlled(self, case):
        """alpaca-eval's regression by liblinear with a tolerance of 1e-10, and with its own of 1e-4. With anchors the
        folds are dealt out otherwise, which can change C where hardly anything hangs on it."""
        arrays = {name: np.asarray(case[name], float) for name in ("preferences", "lengths", "baseline_lengths")}
        gamma = None if case["difficulty"] is None else np.asarray(case["difficulty"])
        anchors = case["anchors"] and Anchors(*(np.asarray(case["anchors"][name]) for name in Anchors._fields))
        found = length_controlled(**arrays, difficulty=gamma, anchors=anchors, seed=0, resamples=20)
        tight, published = case["expected"]["tight"], case["expected"]["published"]
        exact_to, weights_to = (1e-4, 1e-3) if anchors else (1e-6, 1e-5)
        assert anchors or found.strength == pytest.approx(tight["C"])
        assert found.rate.value == pytest.approx(tight["rate"], abs=exact_to)
        assert found.rate.value == pytest.approx(published["rate"], abs=1e-4)
        names = {"not_gamed_baseline.astype(float)": 0, "np.tanh(std_delta_len)": 1, "instruction_difficulty": 2}
        for name, weight in tight["weights"].items():
            assert found.coefficients[names[name]] == pytest.approx(weight, abs=weights_to)
        assert found.rate.low <= found.rate.value <= found.rate.high
        own = arrays["preferences"]
        assert win_rate(own, seed=0, resamples=2).value == pytest.approx(case["win_rate"], abs=1e-9)
        assert discrete_win_rate(own, seed=0, resamples=2).value == pytest.approx(case["discrete_win_rate"], abs=1e-9)

    @pytest.mark.parametrize("case", golden_cases("judging", "bradley_terry"), ids=lambda case: f"{case['models']}")
    def test_bradley_terry(self, case):
        battles = [Battle(*one) for one in case["battles"]]
        found = ranked(battles, case["models"], seed=0, resamples=50)
        np.testing.assert_allclose([one.rating.value for one in found], case["ratings"], atol=1e-3)
        np.testing.assert_allclose([one.rate.value for one in found], case["rates"], atol=1e-6)
        assert found[0].rating == Estimate(1000.0, 1000.0, 1000.0) and found[0].rate.value == 0.5
        assert all(one.rating.low < one.rating.value < one.rating.high for one in found[1:])

    @pytest.mark.parametrize("case", golden_cases("judging", "kappa"), ids=lambda case: f"{max(case['first'])}")
    def test_kappa(self, case):
        first, second = np.asarray(case["first"]), np.asarray(case["second"])
        assert kappa(first, second) == pytest.approx(case["kappa"], abs=1e-9)
        assert kappa(first, second, "linear") == pytest.approx(case["linear"], abs=1e-9)


class TestArithmetic:
    def test_weighted_preferences(self):
        told = [
            Candidate("m", math.log(0.2)),
            Candidate(" M", math.log(0.5)),
            Candidate("M", math.log(0.1)),
            Candidate("x", -1),
        ]
        assert weighted_preference(told, "m", "M") == pytest.approx(0.75)
        assert weighted_preference(told[3:], "m", "M") is None

    def test_a_judge_that_goes_by_length_alone(self):
        """Preferences that follow from lengths: a rate of 0.5 at equal ones, where the raw one is far from it."""
        rng = np.random.default_rng(0)
        base = rng.integers(400, 800, 400).astype(float)
        own = base + rng.integers(-100, 500, 400)
        delta = base - own
        likes = 1 / (1 + np.exp(3 * np.tanh(delta / delta.std(ddof=1))))
        raw = win_rate(likes, seed=0, resamples=2).value
        found = length_controlled(likes, own, base, seed=0, resamples=2)
        assert (
            raw > 0.65
            and found.rate.value == pytest.approx(0.5, abs=0.01)
            and found.coefficients[1] == pytest.approx(-3, abs=0.1)
        )

    def test_what_is_fitted_is_the_least(self):
        rng = np.random.default_rng(1)
        rows, wanted, weights = rng.normal(size=(50, 3)), rng.random(50), rng.random(50)
        best = fitted(rows, wanted, weights, 2.0)

        def loss(b):
            logits = rows @ b
            return 2 * (weights * (np.logaddexp(0, logits) - wanted * logits)).sum() + np.abs(b).sum()

        assert all(loss(best) <= loss(best + step) for step in rng.normal(size=(200, 3)) * 0.05)
        assert np.allclose(fitted(rows, wanted, weights, 1e-4), 0)

    def test_difficulties(self):
        """Instructions that every model loses are found."""
        rng = np.random.default_rng(2)
        gamma = rng.normal(size=60)
        base, own = rng.integers(100, 900, 60), rng.integers(100, 900, (5, 60))
        logits = rng.normal(size=5)[:, None] + gamma
        found = difficulties(1 / (1 + np.exp(-logits)), base - own)
        assert np.corrcoef(found, gamma)[0, 1] > 0.95 and abs(found.mean()) < 1e-9
        with pytest.raises(InputError, match="one model does not tell difficulty"):
            difficulties(np.full((1, 60), 0.5), base - own[:1])

    def test_strong_verdicts_and_ties(self):
        won = wins([Battle(0, 0, 1, 2), Battle(0, 1, 0, 1), Battle(1, 0, 1, 0), Battle(1, 1, 0, -2)], 2)
        assert won.tolist() == [[0, 6.5], [1.5, 0]]
        assert strengths(won)[1] == pytest.approx(math.log(1.5 / 6.5), abs=1e-5)
        assert 10 < strengths(np.asarray([[0, 0], [8.0, 0]]))[1] < 20
        with pytest.raises(InputError, match="model 3 has no verdict"):
            strengths(np.pad(won, (0, 1)))

    def test_intervals_cover(self):
        """Of 300 samples of 60 from a mean of 0.3: 91 to 98 %."""
        rng = np.random.default_rng(3)
        held = 0
        for _ in range(300):
            low, high = mean_estimate((rng.random(60) < 0.3).astype(float), seed=0, resamples=200)[1:]
            held += low <= 0.3 <= high
        assert 0.91 <= held / 300 <= 0.98
        same = [mean_estimate(np.arange(9.0), seed=5, resamples=50) for _ in range(2)]
        assert same[0] == same[1] and math.isnan(mean_estimate(np.ones(1), seed=0).low)
        with pytest.raises(InputError, match="field 'questions': there is none"):
            estimates(lambda drawn: np.zeros(1), 0, seed=0)

    def test_agreement_and_places(self):
        first, second = np.asarray([1, 1, 0, np.nan, 0.0]), np.asarray([1, 0, 0, 1, 0.0])
        found = agreement(first, second, seed=0, resamples=50)
        assert (found.share.value, found.pairs) == (0.75, 4) and found.kappa.value == pytest.approx(0.5)
        assert kappa(np.ones(4), np.ones(4)) == 1.0
        forth, back = np.asarray([0.9, 0.9, 0.2, 0.5, 0.8]), np.asarray([0.8, 0.1, 0.9, 0.5, np.nan])
        bias = place_bias(forth, back, seed=0, resamples=50)
        assert (bias.consistent.value, bias.first.value, bias.second.value, bias.pairs) == (0.5, 0.25, 0.25, 4)
        assert bias.lead.value == pytest.approx(((0.1 + 0.8 - 0.7 + 0.0) / 4) / 2)
        with pytest.raises(InputError, match="field 'repeat'"):
            agreement(first[3:4], second[3:4], seed=0)

    def test_turns(self):
        scores = np.asarray([[8.0, 6], [4, np.nan], [9, 3]])
        found = by_category(scores, ["math", "math", "art"], seed=0, resamples=20)
        assert [round(one.value, 3) for one in found["all"]] == [7.0, 4.5, 6.0]
        assert [one.value for one in found["math"]] == [6.0, 6.0, 6.0] and list(found) == ["math", "art", "all"]


class TestReplies:
    def test_preferences(self):
        told = Reply("M", "stop", (Candidate("M", math.log(0.6)), Candidate("m", math.log(0.2))))
        assert preference_of(told) == 0.75 and preference_of(Reply(" m.", "stop")) == 0.0
        assert preference_of(Reply("both", "stop")) == UNREAD and preference_of(Failure("late")) == Failure("late")
        assert preference_of(told._replace(logprobs=(Candidate("I", -0.1),))) == UNREAD

    @pytest.mark.parametrize(
        "text, grade",
        [
            ("So [[A>B]].", 1), ("[[B>>A]]", -2), ("[[ A=B ]] and again [[A=B]]", 0), ("[[A>B]] or [[B>A]]", UNREAD),
            ("A>B", UNREAD), ("", UNREAD),
        ],
    )  # fmt: skip
    def test_grades(self, text, grade):
        assert grade_of(Reply(text, "stop")) == grade

    @pytest.mark.parametrize(
        "text, score",
        [("[[7]]", 7.0), ("first [[3]], then [[8.5]]", 8.5), ("[[11]]", UNREAD), ("[[0]]", UNREAD), ("7", UNREAD)],
    )
    def test_scores(self, text, score):
        assert score_of(Reply(text, "stop")) == score

    def test_a_rule_judges(self):
        own = answers_of([{"prompt": "2 + 2?", "response": "4", "answer": "4"}])["2 + 2?"]
        other = own._replace(said=("5",))
        assert preference_of(rule_pair("alpaca", exact, own, other)) == pytest.approx(1 / (1 + math.exp(4)))
        assert preference_of(rule_pair("alpaca", exact, other, own)) > 0.9
        assert (
            grade_of(rule_pair("arena", exact, other, own)) == -2 and grade_of(rule_pair("arena", exact, own, own)) == 0
        )
        assert score_of(rule_score(exact, own, 0)) == 10.0 and score_of(rule_score(exact, other, 0)) == 1.0


class TestWhatIsAsked:
    def test_pairs_and_turns(self):
        asked = {"turns": ["Add {first} to 2.", "And 3?"], "reference": ["r1", "r2"], "question_id": 1}
        own = answers_of([{**asked, "responses": ["mine {second}", "mine 2"]}])["1"]
        other = answers_of([{**asked, "responses": ["theirs 1", "theirs 2"]}])["1"]
        system, user = pair_question(WORDINGS["arena"], own, own, other).messages
        assert (
            "(1) Add {first} to 2.\n\n(2) And 3?" in user.content and "(1) mine {second}\n\n(2) mine 2" in user.content
        )
        assert user.content.index("mine 2") < user.content.index("theirs 1") and "[[A>>B]]" in system.content
        text = grade_question(WORDINGS["mtbench"], own, 1).messages[-1].content
        assert (
            text.index("Add {first}")
            < text.index("mine {second}")
            < text.index("And 3?")
            < text.index("r2")
            < text.index("mine 2")
        )
        assert "mine 2" not in grade_question(WORDINGS["mtbench"], own, 0).messages[-1].content

    def test_other_words(self, tmp_path):
        file = tmp_path / "words.yaml"
        file.write_text("user: '{question} | {first} | {second} | {else}'\n")
        own = answers_of([{"prompt": "q", "response": "a"}])["q"]
        assert pair_question(wording_of("alpaca", str(file)), own, own, own).messages[0].content == "q | a | a | {else}"
        file.write_text("user: '{question} {first}'\n")
        with pytest.raises(InputError, match=r"field 'user': lacks the place \{second\}"):
            wording_of("alpaca", str(file))

    def test_answers_of_the_published_form(self):
        questions = questions_of(
            [{"question_id": 81, "category": "math", "turns": ["a", "b"], "reference": ["x", "y"]}]
        )
        given = [{"question_id": 81, "model_id": "m", "choices": [{"index": 0, "turns": ["1", "2"]}]}]
        assert answers_of(given, questions)["81"] == ("81", ("a", "b"), ("1", "2"), ("x", "y"), "math")
        for records, told in [
            (given, "question 81 is not among the questions"), ([{"prompt": "a"}], "is no answer"), ([], "holds no answer"),
            ([{"turns": ["a"], "responses": ["b", "c"]}], "has 2 answers to 1 turns"),
            ([{"prompt": "a", "response": "b"}] * 2, "record 2: answers a question a second time"),
        ]:  # fmt: skip
            with pytest.raises(InputError, match=told):
                answers_of(records)
        plain = {"prompt": "a", "response": "b"}
        for more, told in [
            ({"reference": {"x": 1}}, "'reference': is dict of 1"), ({"reference": 5}, "'reference': is 5, not a text"), ({"answer": 4}, "'answer': is 4"),
            ({"reference": ["a", 1]}, "'reference': is list of 2"), ({"question_id": {"a": 1}}, "'question_id': is dict of 1"), ({"question_id": 1.5}, "'question_id': is 1.5"),
            ({"question_id": True}, "'question_id': is True"), ({"prompt_id": " "}, "'prompt_id': is ' '"), ({"prompt": " \n"}, "'prompt': is blank"), ({"response": 3}, "'response': is 3"),
        ]:  # fmt: skip
            with pytest.raises(InputError, match=f"record 1, field {told}"):
                answers_of([plain | more])
        assert answers_of([plain | {"response": "", "reference": None}])["a"].said == ("",)  # a model may say nothing
        one = answers_of([{"prompt": "a", "response": "b", "prompt_id": "p"}])
        with pytest.raises(InputError, match="answer no question in common"):
            shared_questions({"x": one, "y": answers_of(given, questions)})
        with pytest.raises(InputError, match="is another one in the answers of y"):
            shared_questions({"x": one, "y": {"p": one["p"]._replace(turns=("other",))}})


def records(right: int, extra: str = "") -> list[dict[str, str]]:
    return [
        {"prompt": f"{n} + 1?", "response": f"{n + 1}{extra}" if n < right else f"no {n}{extra}", "answer": str(n + 1)}
        for n in range(20)
    ]


class TestThePage:
    @pytest.fixture
    def files(self, tmp_path):
        return [str(write(tmp_path / f"{name}.jsonl", records(*how))) for name, how in (
            ("base", (10,)), ("good", (18,)), ("long", (10, ", and so on and so forth")),
        )]  # fmt: skip

    @pytest.mark.parametrize("style", ["alpaca", "arena", "mtbench"])
    def test_files_by_the_rule(self, style, files, tmp_path, capsys):
        out = tmp_path / "run"
        args = ["--preset", style, "--answers", *files, "--rule", "contains", "--resamples", "50", "--out", str(out)]
        attempt(judge, args)
        told = (out / "report.md").read_text()
        kept = read_jsonl(out / "verdicts.jsonl")
        assert all(one["verdict"] is not None for one in kept)
        if style == "mtbench":
            assert len(kept) == 60 + 15 and "| good | all | 9.10 (" in told and "| base | all | 5.50 (" in told
        else:
            assert len(kept) == 2 * 40 + 2 * 5
            assert "| same winner in both orders | 1.000 (1.000 to 1.000) | 40 |" in told
        if style == "alpaca":
            rate = 100 * (0.5 * 12 + 8 / (1 + math.exp(-4))) / 20
            assert f"| good | {rate:.1f} (" in told and "| long | 50.0 (50.0 to 50.0)" in told
        if style == "arena":
            assert "| good | " in told and "| base | 50.0 (50.0 to 50.0) | 1000 (1000 to 1000)" in told
        assert "| agrees with itself | 1.000" in told
        results = json.loads((out / "results.json").read_text())
        assert set(results) == ({"base", "good", "long"} if style == "mtbench" else {"good", "long"})

    def test_right_answers_of_one_file_hold_for_all(self, tmp_path):
        """Equal answers are equal, in both orders, whichever file has "answer"."""
        for name, known in (("base", True), ("bare", False)):
            own = [one if known else {key: one[key] for key in ("prompt", "response")} for one in records(10)]
            write(tmp_path / f"{name}.jsonl", own)
        files = [str(tmp_path / f"{name}.jsonl") for name in ("base", "bare")]
        args = ["--preset", "arena", "--answers", *files, "--rule", "contains", "--resamples", "20"]
        attempt(judge, [*args, "--out", str(tmp_path / "run")])
        assert {one["verdict"] for one in read_jsonl(tmp_path / "run/verdicts.jsonl")} == {0}
        assert "| same winner in both orders | 1.000" in (tmp_path / "run/report.md").read_text()

    @pytest.mark.parametrize(
        "rate, told",
        [
            (0.9, "y does best against x (win rate 0.900)."),
            (0.167, "no model beats x; y comes nearest (win rate 0.167)."),
        ],
    )
    def test_the_result_is_told_as_it_is(self, rate, told):
        compared = Compared(["q"], {"x": {}, "y": {}})
        found = result_sentence(judge.Settings(), compared, Told([], {"y": {"win rate": rate}}, []))
        assert found.endswith(f"on 1 questions: {told}")

    def test_what_is_refused(self, files, tmp_path, capsys):
        args = ["--out", str(tmp_path / "run"), "--answers", *files]
        fails(judge, [*args, "--baseline", "god"], capsys, "field '--baseline'", "Did you mean 'good'")
        fails(judge, [*args[:4]], capsys, "field '--answers'", "a single model cannot be compared")
        fails(judge, [*args, "--repeat", "2"], capsys, "field '--repeat'")
        fails(judge, [*args, "--server", "http://127.0.0.1:9/v1"], capsys, "field '--served'")
        bare = [str(write(tmp_path / f"{name}.jsonl", [{"prompt": "a", "response": name}])) for name in "xy"]
        fails(judge, ["--out", str(tmp_path / "run"), "--answers", *bare], capsys, "the rule needs right answers")
        line = fails(judge, [*args, "--transport.key-variable", "sk-REAL"], capsys, "field '--transport.key-variable'")
        assert "REAL" not in line
        hard = str(write(tmp_path / "hard.jsonl", [{"question_id": "a", "difficulty": "very"}]))
        fails(judge, [*args, "--difficulty", hard], capsys, "hard.jsonl, record 1, field 'difficulty': is 'very'")
        assert not (tmp_path / "run").exists()

    def test_the_published_questions(self, tmp_path):
        """The 80 of MT-Bench: one model has the reference answers where there are any, the other has none of them."""
        questions = read_jsonl(GOLDEN / "mt_bench_questions.jsonl")
        for name, right in (("right", True), ("wrong", False)):
            said = [(one.get("reference") if right else None) or ["nothing"] * len(one["turns"]) for one in questions]
            write(tmp_path / f"{name}.jsonl", [
                {"question_id": one["question_id"], "choices": [{"turns": turns[:2]}]}
                for one, turns in zip(questions, said, strict=True)
            ])  # fmt: skip
        args = ["--preset", "mtbench", "--questions", str(GOLDEN / "mt_bench_questions.jsonl"), "--rule", "exact"]
        args += ["--answers", str(tmp_path / "right.jsonl"), str(tmp_path / "wrong.jsonl"), "--resamples", "50"]
        attempt(judge, [*args, "--out", str(tmp_path / "run")])
        told = (tmp_path / "run" / "report.md").read_text()
        assert "| right | math | 10.00 (10.00 to 10.00) | 10.00 (10.00 to 10.00) | 10.00" in told
        assert "| right | writing | 1.00 (1.00 to 1.00) |" in told and "| wrong | math | 1.00 (" in told
        assert len(read_jsonl(tmp_path / "run" / "verdicts.jsonl")) == 2 * 2 * (80 + 20)

    @pytest.mark.usefixtures("quick_compiler")
    def test_a_model_judges(self, files, tmp_path):
        """Weights by which every reply begins with "m" at the odds exp(2) to "M": the first place always wins."""
        folder = small_folder(tmp_path / "judge", max_position_embeddings=1024, tie_word_embeddings=False)
        named = {label: fj.load(folder).tokenizer(label, add_special_tokens=False)["input_ids"] for label in "mM"}
        tensors = load_file(folder / "model.safetensors")
        for name, tensor in tensors.items():
            tensor[:] = 1.0 if "norm" in name or "embed" in name else -1.0 if name == "lm_head.weight" else 0.0
        for (place,), logit in ((named["m"], 2.0), (named["M"], 0.0)):
            tensors["lm_head.weight"][place] = logit / tensors["lm_head.weight"].shape[1]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        args = ["--model", str(folder), "--answers", *files[:2], "--out", str(tmp_path / "run")]
        attempt(judge, [*args, "--batch-size", "4", "--repeat", "0", "--resamples", "20"])
        kept = read_jsonl(tmp_path / "run" / "verdicts.jsonl")
        assert len(kept) == 40 and {one["reply"] for one in kept} == {"m"}
        assert [one["verdict"] for one in kept] == pytest.approx([1 / (1 + math.exp(2))] * 40, abs=1e-4)
        told = (tmp_path / "run" / "report.md").read_text()
        assert "| first place wins both times | 1.000 (1.000 to 1.000) | 20 |" in told and "| good | 50.0 (" in told

    def test_a_server_judges(self, tmp_path, monkeypatch, capsys):
        """What fails is counted and told, and no key is written; what was judged before a kill is counted again, and
        what failed is asked again where that is wished."""
        monkeypatch.setenv("JUDGE_KEY", "sk-Judge-Key")
        down, out = True, tmp_path / "run"

        def answer(text: str, _: int) -> Response:
            if down and text.startswith("Request:\n0 +"):
                return refusal(500, "no memory for sk-Judge-Key")
            return Response([b" "], pause=30.0, length=9) if down and text.startswith("Request:\n1 +") else chat("m")

        def stopped() -> str:
            """As a kill behind verdicts.jsonl leaves it."""
            told = (out / "report.md").read_text()
            for name in ("report.md", "results.json", "finished.json", "manifests/results.json.json"):
                (out / name).unlink()
            return told[told.index("## Verdicts") :]

        files = [
            str(write(tmp_path / f"{name}.jsonl", records(right)[:4])) for name, right in (("base", 1), ("good", 3))
        ]
        with serving(answer) as log:
            args = [
                "--answers",
                *files,
                "--server",
                log.url,
                "--served",
                "small",
                "--out",
                str(out),
                "--resamples",
                "20",
            ]
            args += ["--repeat", "0", "--transport.retries", "0", "--transport.key-variable", "JUDGE_KEY"]
            attempt(judge, [*args, "--transport.request-seconds", "4"])
            told, asked = stopped(), sum(log.asked().values())
            assert asked == 6 and "| verdicts | HTTP 500 | 2 |" in told and "| verdicts | timeout | 2 |" in told
            assert "| verdicts | used | 4 |" in told and "HTTP 500: no memory for ***; timeout: no whole reply" in told
            attempt(judge, [*args, "--resume", "True"])
            assert stopped() == told and sum(log.asked().values()) == asked
            down = False
            attempt(judge, [*args, "--resume", "True", "--failed-again", "True"])
            assert (
                "| verdicts | used | 8 |" in (out / "report.md").read_text() and sum(log.asked().values()) == asked + 3
            )
            told = ("field '--failed-again': is finished", f"--log {out / 'replies'} --failed-again True")
            fails(judge, [*args, "--resume", "True", "--failed-again", "True"], capsys, *told)
        assert {headers["Authorization"] for headers in log.headers} == {"Bearer sk-Judge-Key"}
        assert not any(b"sk-Judge" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())

    def test_seeds_ask_alike_questions_once(self, tmp_path):
        files = [
            str(write(tmp_path / f"{name}.jsonl", records(right)[:4])) for name, right in (("base", 1), ("good", 3))
        ]
        with serving(lambda *_: chat("m")) as log:
            args = ["--answers", *files, "--server", log.url, "--served", "small", "--out", str(tmp_path / "run")]
            attempt(judge, [*args, "--repeat", "0", "--resamples", "20", "--seeds", "2"])
        assert set(log.asked().values()) == {1} and len(log.asked()) == 6  # equal answers are one question
        assert (tmp_path / "run/replies/0.jsonl").exists() and (tmp_path / "run/seed-43/verdicts.jsonl").exists()

    def test_verdicts_that_cannot_be_read_are_counted(self, files, tmp_path, monkeypatch):
        from fusion_jax.asking.given import Given
        from fusion_jax.runs import verdicts

        def said(question):
            return "m" if int(question.digest, 16) % 3 else "I cannot say"

        monkeypatch.setattr(verdicts, "rule_pair", lambda *_: Reply("", "stop"))
        monkeypatch.setattr(verdicts, "Given", lambda name, say: Given(name, said))
        attempt(judge, ["--answers", *files, "--rule", "contains", "--resamples", "20", "--out", str(tmp_path / "run")])
        told = (tmp_path / "run" / "report.md").read_text()
        unread = sum(one["verdict"] is None for one in read_jsonl(tmp_path / "run" / "verdicts.jsonl"))
        assert unread and f"| verdicts | no verdict in the reply | {unread} |" in told
        assert "| first place wins both times |" in told
