"""A server of the OpenAI chat API as an answerer, over real HTTP: what it is asked, and whatever it may answer."""

from __future__ import annotations

import dataclasses
import json
import re
import time
import traceback

import pytest

from fusion_jax.asking import server as servers
from fusion_jax.asking.ask import Kept, ask, failures
from fusion_jax.asking.contract import Candidate, Decoding, Failure, Message, Question, Reply
from fusion_jax.asking.key import Key
from fusion_jax.asking.log import ReplyLog
from fusion_jax.asking.server import Server, Transport, retry_after
from fusion_jax.errors import InputError
from fusion_jax.runs.helpers import HelperSettings
from fusion_jax.runs.opening import _kept
from tests.asking.chat_server import Response, chat, refusal, serving

QUICK = Transport(retries=2, first_wait=0.01, longest_wait=0.05, request_seconds=30.0)
KEY = "sk-Very-Secret-0123"


def outcomes(url: str, *texts: str, decoding: Decoding = Decoding(), **changes) -> list:
    answerer = Server(url, "small", dataclasses.replace(QUICK, **changes))
    found = dict(answerer.answers([Question.of(text) for text in texts], decoding))
    return [found[number] for number in range(len(texts))]


def test_what_is_asked_and_what_is_read():
    tops = [{"token": "M", "logprob": -1.5}, {"token": "m", "logprob": -0.25}]
    logprobs = {
        "content": [
            {"token": "m", "logprob": -0.25, "top_logprobs": tops},
            {"token": "!", "logprob": 0, "top_logprobs": []},
        ]
    }
    with serving(lambda text, _: chat(f"said {text}", logprobs=logprobs, finish_reason="length")) as log:
        how = Decoding(max_tokens=3, temperature=0.5, top_p=0.9, stop=("\n",), seed=7, top_logprobs=2)
        answerer = Server(log.url + "/", "small", QUICK)
        asked = Question((Message("system", "be short"), Message("user", "a?")))
        ((number, reply),) = answerer.answers([asked], how)
    assert (number, reply.text, reply.finish) == (0, "said a?", "length")
    assert reply.logprobs == (Candidate("m", -0.25), Candidate("M", -1.5))  # the best first
    (body,) = log.bodies
    assert body == {
        "model": "small", "messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "a?"}],
        "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 7, "stream": False, "stop": ["\n"], "logprobs": True,
        "top_logprobs": 2, "path": "/v1/chat/completions",
    }  # fmt: skip
    assert "Authorization" not in log.headers[0] and answerer.identity == f"small at {log.url}"


def test_the_newer_field_and_replies_without_extras():
    with serving(lambda *_: Response([b'{"choices": [{"message": {"content": null}}]}'])) as log:
        assert outcomes(log.url, "a", tokens_field="max_completion_tokens") == [Reply("", "")]
        assert (
            log.bodies[0]["max_completion_tokens"] == 256
            and not {"max_tokens", "stop", "logprobs"} & log.bodies[0].keys()
        )


def test_requests_stand_side_by_side_up_to_a_bound():
    def answer(text: str, _: int) -> Response:
        time.sleep(0.05)
        return chat(text.upper())

    texts = [f"q{number}" for number in range(12)]
    with serving(answer) as log:
        assert outcomes(log.url, *texts, concurrency=4) == [Reply(text.upper(), "stop") for text in texts]
    assert log.most_at_once == 4


@pytest.mark.parametrize("wrong", [
    refusal(500), refusal(503), refusal(429), refusal(408), Response([], dropped=True),
    Response([b'{"choices": [{"message"'], length=400), Response([b'{"choices": [{"message": {"con']), Response([b"<html>busy</html>"]),
    Response([b"\xff\xfe\x00garbage"]), Response([b"[1, 2]"]), Response([b"{}"]), Response([b'{"choices": []}']), Response([b'{"choices": ["x"]}']),
    Response([b'{"choices": [{"message": {"content": 3}}]}']), Response([b'{"choices": [{"message": {"content": "\\ud83d"}}]}']),
    Response([b'data: {"choices": []}\n\n', b"data: [DONE]\n\n"], headers={"Content-Type": "text/event-stream"}),
    Response([b"x"], headers={"Content-Encoding": "gzip"}), Response([b"[" * 20000]),
], ids=range(18))  # fmt: skip
def test_what_may_pass_is_tried_again(wrong):
    with serving(lambda text, before: wrong if before < 2 else chat("well")) as log:
        assert outcomes(log.url, "a") == [Reply("well", "stop")]
    assert log.asked() == {"a": 3}


def test_what_does_not_pass_is_counted_by_reason():
    wrong = {
        "code": refusal(500, "out of memory"), "cut": Response([b'{"choices": [{"mess'], length=300), "garbage": Response([b"\x00\x01"]),
        "shape": Response([b'{"choices": [{"message": []}]}']), "large": Response([b"x" * 5000]),
        "stream": Response([b"data: {}\n\n"], headers={"Content-Type": "text/event-stream; charset=utf-8"}), "long": refusal(400, "too many tokens"),
    }  # fmt: skip
    with serving(lambda text, _: wrong[text]) as log:
        found = outcomes(log.url, *wrong, retries=1, largest_reply=4096)
        assert log.asked() == {**dict.fromkeys(wrong, 2), "long": 1}  # what was refused stays refused
    assert [one.reason for one in found] == [
        "HTTP 500", "connection", "reply that is no JSON", "reply of another shape", "reply that is too large",
        "a stream, not a reply", "HTTP 400",
    ]  # fmt: skip
    assert found[0].detail == "out of memory" and "choices[0].message" in found[3].detail
    assert found[6].detail == "too many tokens"
    assert failures(found)["HTTP 500"] == 1 and sum(failures(found).values()) == 7


def test_a_body_that_drips_ends_at_the_time_limit():
    """Each piece comes in time, the whole does not; nor do headers that never end."""
    with serving(lambda *_: Response([b" "] * 900, pause=0.1)) as log:
        begun = time.monotonic()
        assert outcomes(log.url, "a", retries=0, request_seconds=0.35)[0].reason == "timeout"
        assert time.monotonic() - begun < 45.0
        begun = time.monotonic()
        assert outcomes(log.url, "b", retries=50, request_seconds=0.2, question_seconds=0.5)[0].reason == "timeout"
        assert time.monotonic() - begun < 45.0


def test_a_server_asks_to_wait():
    """As long as it asks, but no longer than the longest wait."""
    answers = {0: refusal(429, Retry_After="0.3"), 1: refusal(503, Retry_After="9999"), 2: chat("now")}
    with serving(lambda text, before: answers[before]) as log:
        assert outcomes(log.url, "a", longest_wait=0.4) == [Reply("now", "stop")]
    first, second = (after - before for before, after in zip(log.times, log.times[1:]))
    assert first > 0.29 and 0.39 < second < 60.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0 and retry_after("") == 0.0 and retry_after("nan") == 0.0
    assert retry_after("Fri, 31 Dec 2199 23:59:59 GMT") > 3e9


def test_redirects_are_not_followed():
    with serving(lambda *_: chat("elsewhere")) as other:
        away = Response([b""], 307, {"Location": f"{other.url}/chat/completions"})
        with (
            serving(lambda *_: away) as log,
            pytest.raises(InputError, match=r"sends on to http.*no redirect is followed"),
        ):
            outcomes(log.url, "a")
        assert len(log.bodies) == 1 and not other.bodies


@pytest.mark.parametrize("wrong, told", [
    (refusal(400, "no such field: seed"), r"HTTP 400 \(no such field: seed\)"),
    (Response([b"<html>log in</html>"], headers={"Content-Type": "text/html"}), r"reply that is no JSON \(.*text/html\)"),
])  # fmt: skip
def test_a_server_that_never_gives_a_reply_is_given_up(wrong, told):
    """But not one that has given a reply, which may refuse any number of questions."""
    with serving(lambda text, _: chat("well") if text == "first" else wrong) as log:
        with pytest.raises(
            InputError, match=f"3 questions in a row failed, the last one with {told}.*transport.give-up"
        ):
            outcomes(log.url, *"abcdefgh", retries=0, give_up=3, concurrency=1)
        assert len(log.bodies) == 3
        found = outcomes(log.url, "first", *"abcdefgh", retries=0, give_up=3, concurrency=1)
    assert found[0] == Reply("well", "stop") and len(found) == 9


def test_all_questions_that_fail_alike_are_enough_to_give_a_server_up():
    page = Response([b"<html>log in</html>"], headers={"Content-Type": "text/html"})
    with serving(lambda *_: page) as log:
        with pytest.raises(InputError, match="4 questions in a row failed, the last one with reply that is no JSON"):
            outcomes(log.url, *"abcd", retries=0)
        assert [type(one) for one in outcomes(log.url, *"ab", retries=0)] == [Failure, Failure]
    with pytest.raises(InputError, match="3 questions in a row failed, the last one with connection"):
        outcomes(log.url, *"abc", retries=0)


@pytest.mark.parametrize("answer, told", [
    (refusal(401, "bad key"), r"refuses the key \(HTTP 401: bad key\).*--transport.key-variable"),
    (refusal(404, "no model"), "no such address or model"),
])  # fmt: skip
def test_what_concerns_all_questions_stops_them(answer, told):
    with serving(lambda *_: answer) as log, pytest.raises(InputError, match=told):
        outcomes(log.url, *"abcdefghijkl", concurrency=2)
    assert len(log.bodies) <= 2


def test_a_server_that_goes_away_stops_the_run_and_keeps_what_was_answered(tmp_path):
    """The same questions again go on where it stopped."""
    gone = True
    texts = [f"{number:02}" for number in range(20)]

    def answer(text: str, _: int) -> Response:
        return refusal(502) if gone and int(text) >= 8 else chat(f"answer {text}")

    with serving(answer) as log:
        answerer = Server(log.url, "small", dataclasses.replace(QUICK, retries=0, concurrency=1, give_up=3))
        questions = [Question.of(text) for text in texts]
        with (
            ReplyLog.of(tmp_path / "replies") as replies,
            pytest.raises(InputError, match=r"3 questions in a row failed.*HTTP 502"),
        ):
            ask(answerer, questions, Decoding(), Kept(replies))
        gone = False
        with ReplyLog.of(tmp_path / "replies") as replies:
            found = ask(answerer, questions, Decoding(), Kept(replies))
    assert [one.text for one in found] == [f"answer {text}" for text in texts]
    assert all(log.asked()[text] == 1 for text in texts[:8])


def test_nobody_listens():
    with serving(lambda *_: chat("x")) as log:
        pass
    assert outcomes(log.url, "a", retries=1)[0].reason == "connection"
    with pytest.raises(InputError, match="2 questions in a row failed, the last one with connection"):
        outcomes(log.url, "a", "b", "c", retries=0, give_up=2, concurrency=1)


def test_the_key_is_sent_and_shown_nowhere(tmp_path, monkeypatch, caplog):
    """Not in reprs, errors, tracebacks, the log, or replies of a server that echoes it."""
    monkeypatch.setenv("SOME_KEY", f" {KEY}\n")
    caplog.set_level(0)
    shown = []

    def answer(text: str, _: int) -> Response:
        if text == "refused":
            return refusal(403, f"Incorrect key {KEY}")
        return refusal(400, f"bad {KEY}") if text == "bad" else chat(f"your key is {KEY}", finish_reason=KEY)

    with serving(answer) as log:
        answerer = Server(log.url, "small", dataclasses.replace(QUICK, key_variable="SOME_KEY"))
        with ReplyLog.of(tmp_path / "replies") as replies:
            found = ask(answerer, [Question.of("a"), Question.of("bad")], Decoding(), Kept(replies))
            with pytest.raises(InputError) as refused:
                ask(answerer, [Question.of("refused")], Decoding(), Kept(replies))
        shown += ["".join(traceback.format_exception(refused.value)), str(found)]
        assert {headers["Authorization"] for headers in log.headers} == {f"Bearer {KEY}"}
    assert found == [Reply("your key is ***", "***"), Failure("HTTP 400", "bad ***")]
    shown += [
        repr(answerer),
        str(answerer),
        repr(answerer.transport),
        repr(answerer.key),
        answerer.identity,
        caplog.text,
    ]
    shown += [
        str(dataclasses.asdict(answerer.transport)),
        *(file.read_text() for file in tmp_path.rglob("*") if file.is_file()),
    ]
    assert "Incorrect key ***" in shown[0] and not any(KEY in text or "Secret" in text for text in shown)


def test_no_part_of_an_echoed_key_is_kept(tmp_path, monkeypatch):
    """In headers, escaped, or where what the server says is cut."""
    monkeypatch.setenv("SOME_KEY", KEY)
    escaped = "".join(f"\\u{ord(c):04x}" for c in KEY).encode()
    typed = {"Content-Type": f"text/event-stream; {KEY}"}
    echoes = {
        "stream": Response([b"data: {}"], headers=typed), "packed": Response([b"x"], headers={"Content-Encoding": KEY}),
        "cut": Response([b"x" * 390 + KEY.encode()], 400), "page": Response([b"<html>"], headers={"Content-Type": KEY}),
        "shape": Response([b'{"choices": "' + b"x" * 75 + escaped + b'"}']), "twice": Response([b'{"error": "' + escaped * 30 + b'"}'], 400),
    }  # fmt: skip
    with serving(lambda text, _: echoes[text]) as log, ReplyLog.of(tmp_path) as replies:
        answerer = Server(log.url, "small", dataclasses.replace(QUICK, key_variable="SOME_KEY", retries=0))
        found = ask(answerer, [Question.of(text) for text in echoes], Decoding(), Kept(replies))
    kept = (tmp_path / "0.jsonl").read_text()
    assert all(isinstance(one, Failure) and one.detail for one in found)
    assert kept.count("***") >= 3 and not any(part in kept for part in ("sk-", "Very", "Secret", "\\u0073"))


@pytest.mark.parametrize("value", ["", "  ", "sk\nInjected: x", "abc", "schlüssel", "two words"])
def test_a_key_that_is_none_is_refused_unseen(value, monkeypatch):
    monkeypatch.setenv("SOME_KEY", value)
    with pytest.raises(InputError, match="SOME_KEY") as error:
        Server("http://127.0.0.1:1/v1", "small", Transport(key_variable="SOME_KEY"))
    assert not value.strip() or value not in str(error.value)
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(InputError, match="SOME_KEY is not set or empty"):
        Key.of("SOME_KEY")


@pytest.mark.parametrize("name", ["sk-abc-REAL", "sk_live_REAL", "two words", "1x"])
def test_a_key_in_place_of_its_variables_name_is_not_shown(name):
    with pytest.raises(InputError, match=r"field '(--judge\.transport\.key-variable|key_variable)'") as error:
        Server("http://127.0.0.1:1/v1", "small", Transport(key_variable=name), options="--judge.")
    assert name not in str(error.value)


@pytest.mark.parametrize("url", [
    "", "localhost:8000", "ftp://host/v1", "http://", "http://host:99999/v1", "http://me:secret@host/v1", "http://host/v1?key=secret", "http://a b/v1",
])  # fmt: skip
def test_addresses_that_are_none(url):
    with pytest.raises(InputError, match="field '--server'") as error:
        Server(url, "small")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("changes, told", [
    ({"server": "ftp://x", "served": "m"}, "field '--judge.server'"), ({"server": "http://a/?k=1", "served": "m"}, "--judge.transport.key-variable"),
    ({"served": "m"}, "--judge.server ADDRESS --judge.served NAME"), ({"model": "zoo:target", "server": "http://a/v1"}, "field '--judge.model'"),
    ({"server": "http://a/v1", "served": "m", "transport": Transport("NO_SUCH_KEY")}, "field '--judge.transport.key-variable'"),
])  # fmt: skip
def test_messages_name_the_option_of_the_helper_that_is_meant(changes, told):
    with pytest.raises(InputError, match=re.escape(told)):
        HelperSettings(**changes).check("--judge")


def test_how_hard_a_server_is_tried_may_change_when_a_run_goes_on():
    """Also one of a helper."""

    @dataclasses.dataclass
    class Settings:
        helper: HelperSettings

    kept = [_kept(Settings(HelperSettings(**how))) for how in ({}, {"transport": Transport(retries=9)}, {"seed": 1})]
    assert kept[0] == kept[1] != kept[2]


def test_leaving_early_ends_the_requests():
    with serving(lambda text, _: Response([b"{"], pause=200.0) if text == "slow" else chat("x")) as log:
        answers = Server(log.url, "small", QUICK).answers([Question.of("fast"), Question.of("slow")], Decoding())
        assert next(answers) == (0, Reply("x", "stop"))
        begun = time.monotonic()
        answers.close()
        assert time.monotonic() - begun < 60.0


def test_an_error_of_our_own_is_told(monkeypatch):
    monkeypatch.setattr(servers.wire, "body", lambda *_: {}["missing"])
    with pytest.raises(RuntimeError, match="asking the server failed: KeyError"):
        outcomes("http://127.0.0.1:1/v1", "a")


def test_a_question_fits_by_its_characters():
    answerer = Server("http://127.0.0.1:1/v1", "small", most_characters=3)
    assert answerer.fits(Question.of("abc"), Decoding()) and not answerer.fits(Question.of("abcd"), Decoding())
    assert json.dumps(dataclasses.asdict(answerer.transport))
