"""The reply log, and that nothing is asked twice: not after a kill, not by another process, not of questions alike."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from fusion_jax.asking import ask as asking
from fusion_jax.asking.ask import Kept, ask, failures
from fusion_jax.asking.contract import Candidate, Decoding, Failure, Message, Question, Reply
from fusion_jax.asking.given import Given
from fusion_jax.asking.log import Entry, ReplyLog, identity_in, key_of
from fusion_jax.errors import InputError
from fusion_jax.hosts.join import Host
from tests.asking.chat_server import chat, serving
from tests.small import ROOT


class Counting:
    """An answerer that counts what it is asked."""

    def __init__(self, identity: str = "one", say=lambda question: question.messages[-1].content.upper()) -> None:
        self.asked: list[str] = []
        self.seeds: list[int] = []
        self.inner = Given(identity, say)
        self.identity, self.together = identity, False

    def fits(self, question, decoding):
        return True

    def answers(self, questions, decoding):
        self.asked += [question.messages[-1].content for question in questions]
        self.seeds.append(decoding.seed)
        yield from reversed(list(self.inner.answers(questions, decoding)))  # in another order


def questions(*texts: str) -> list[Question]:
    return [Question.of(text) for text in texts]


def test_alike_is_asked_once_and_what_is_known_never(tmp_path):
    one = Counting()
    with ReplyLog.of(tmp_path) as log:
        found = ask(one, questions("a", "b", "a"), Decoding(), Kept(log))
        assert [reply.text for reply in found] == ["A", "B", "A"] and one.asked == ["a", "b"]
        assert ask(one, questions("b", "c"), Decoding(), Kept(log))[0].text == "B" and one.asked == ["a", "b", "c"]
    with ReplyLog.of(tmp_path) as log:  # another start
        done: list[tuple[int, int]] = []
        ask(one, questions("c", "a", "d"), Decoding(), Kept(log), progress=lambda *told: done.append(told))
    assert one.asked == ["a", "b", "c", "d"] and done == [(2, 3), (3, 3)]


def test_another_decoding_sample_model_or_role_is_another_question(tmp_path):
    one, other, question = Counting(), Counting("other"), Question.of("a")
    with ReplyLog.of(tmp_path) as log:
        for decoding, sample in [
            (Decoding(), 0),
            (Decoding(max_tokens=5), 0),
            (Decoding(), 1),
            (Decoding(), 2),
            (Decoding(), 1),
        ]:
            ask(one, [question], decoding, Kept(log), sample=sample)
        ask(other, [question], Decoding(), Kept(log))
        assert len(one.asked) == 4 and len(other.asked) == 1
        with pytest.raises(InputError, match="holds replies of 2 answerers"):
            identity_in(log.entries().values(), tmp_path)
    assert one.seeds[0] == one.seeds[1] == 0 and len(set(one.seeds)) == 3  # a sample has a seed of its own
    assert Question.of("ab", "c").digest != Question.of("b", "ca").digest != Question.of("a", "bc").digest


def test_a_line_has_what_a_reader_needs(tmp_path):
    reply = Reply('said "ü"\n', "length", (Candidate("m", -0.5), Candidate("M", -1.25)))
    with ReplyLog.of(tmp_path) as log:
        ask(Given("one", lambda question: reply), questions("a"), Decoding(top_logprobs=2), Kept(log), sample=3)
    (line,) = (tmp_path / "0.jsonl").read_text(encoding="utf-8").splitlines()
    told = json.loads(line)
    assert told["reply"] == {"text": 'said "ü"\n', "finish": "length", "logprobs": [["m", -0.5], ["M", -1.25]]}
    assert (told["model"], told["sample"], told["decoding"]["top_logprobs"]) == ("one", 3, 2)
    assert told["prompt_sha256"] == Question.of("a").digest and told["key"] == key_of(
        "one", Question.of("a"), Decoding(top_logprobs=2), 3
    )
    (entry,) = ReplyLog.of(tmp_path, None).entries().values()
    assert entry.outcome == reply
    with pytest.raises(InputError, match="only read"):
        ReplyLog.of(tmp_path, None).add(Question.of("a"), Decoding(), 0, entry)


@pytest.mark.parametrize("rest", [b'{"key": "x", "mod', b"\x00\x00", '{"key": "ü'.encode()[:-1]])
def test_a_torn_last_line_is_dropped(tmp_path, rest):
    one = Counting()
    with ReplyLog.of(tmp_path) as log:
        ask(one, questions("a", "b"), Decoding(), Kept(log))
    file = tmp_path / "0.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + rest)
    assert (
        len(ReplyLog.of(tmp_path, None).entries()) == 2 and file.read_bytes() == whole + rest
    )  # reading writes nothing
    with ReplyLog.of(tmp_path) as log:
        ask(one, questions("a", "c"), Decoding(), Kept(log))
    assert one.asked == ["a", "b", "c"] and file.read_bytes().startswith(whole) and rest not in file.read_bytes()
    file.write_bytes(whole[:-20])  # within the only file's last entry
    with ReplyLog.of(tmp_path) as log:
        ask(one, questions("a", "b"), Decoding(), Kept(log))
    assert one.asked[3:] == ["a"]  # the answerer told b first


@pytest.mark.parametrize("line, told", [
    ("{}", "field 'key': is missing"), ("nonsense", "is not valid JSON"), ('{"key": "k", "model": "m"}', "field 'reply': is missing"),
    ('{"key": "k", "model": "m", "reply": {"text": 1, "finish": ""}}', "field 'reply.text'"), ('{"key": "k", "model": "m", "reply": {"text": "", "finish": "", "logprobs": [[1, 2]]}}', "no \\[token, logprob\\]"),
])  # fmt: skip
def test_a_whole_line_that_is_no_entry_is_named(tmp_path, line, told):
    (tmp_path / "0.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(InputError, match=rf"0\.jsonl, record 2.*{told}"):
        ask(Counting(), questions("a"), Decoding(), Kept(ReplyLog.of(tmp_path)))


def test_failures_are_kept_at_the_end_and_asked_again_if_wished(tmp_path):
    state = {"b": Failure("timeout", "5 s")}
    one = Counting(say=lambda question: state.get(question.messages[-1].content, "well"))
    with ReplyLog.of(tmp_path) as log:
        found = ask(one, questions("a", "b"), Decoding(), Kept(log))
        assert failures(found) == {"timeout": 1} and found[1] == Failure("timeout", "5 s")
        assert ask(one, questions("b"), Decoding(), Kept(log)) == [Failure("timeout", "5 s")] and one.asked == [
            "a",
            "b",
        ]
        del state["b"]
        assert ask(one, questions("a", "b"), Decoding(), Kept(log, failed_again=True))[1].text == "well" and one.asked[
            2:
        ] == ["b"]
    assert ask(one, questions("b"), Decoding(), Kept(ReplyLog.of(tmp_path)))[0].text == "well" and len(one.asked) == 3


def test_an_answerer_that_leaves_questions_out_is_told(tmp_path):
    class Silent(Counting):
        def answers(self, questions, decoding):
            yield 1, Reply("x", "stop")

    with pytest.raises(InputError, match="told nothing of 2 questions"):
        ask(Silent(), questions("a", "b", "c"), Decoding())


def test_two_processes_do_not_write_one_file(tmp_path):
    with ReplyLog.of(tmp_path) as log:
        ask(Counting(), questions("a"), Decoding(), Kept(log))
        with pytest.raises(InputError, match="process"):
            ask(Counting(), questions("b"), Decoding(), Kept(ReplyLog.of(tmp_path)))
    with pytest.raises(InputError, match="which need a log"):
        ask(Counting(), questions("b"), Decoding(), Kept(share=Host(0, 2)))


LONG = 300.0  # seconds that a process may take on a busy machine
CHILD = """
import sys
from fusion_jax.asking.ask import Kept, ask
from fusion_jax.asking.contract import Decoding, Question
from fusion_jax.asking.log import ReplyLog
from fusion_jax.asking.server import Server, Transport
from fusion_jax.hosts.join import Host
url, folder, index, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with ReplyLog.of(folder, index) as log:
    found = ask(Server(url, "small", Transport(concurrency=2)), [Question.of(f"q{n % 15}") for n in range(20)], Decoding(), Kept(log, Host(index, count), 300.0))
print(" ".join(one.text for one in found))
"""


@contextmanager
def child(url: str, folder, index: int = 0, count: int = 1) -> Iterator[subprocess.Popen]:
    """A process that asks 15 questions; it does not outlive the block."""
    words = [sys.executable, "-c", CHILD, url, str(folder), str(index), str(count)]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_run_that_is_killed_asks_nothing_twice(tmp_path):
    """But what was under way, here two questions: its replies had not come, or were not kept."""

    def answer(text: str, _: int):
        time.sleep(0.1)
        return chat(text.upper())

    file = tmp_path / "0.jsonl"
    with serving(answer) as log:
        with child(log.url, tmp_path):
            end = time.monotonic() + LONG
            while (not file.exists() or file.read_bytes().count(b"\n") < 5) and time.monotonic() < end:
                time.sleep(0.01)
        kept = file.read_bytes().count(b"\n")
        assert 5 <= kept < 15
        with child(log.url, tmp_path) as done:
            assert done.communicate(timeout=LONG)[0].split() == [f"Q{n % 15}" for n in range(20)]
    twice = [text for text, count in log.asked().items() if count > 1]
    assert len(log.asked()) == 15 and len(twice) <= 2 and max(log.asked().values()) <= 2


def test_processes_that_share_a_log_share_the_questions(tmp_path):
    """Neither asks what the other one asks, and both have all replies."""
    with (
        serving(lambda text, _: chat(text.upper())) as log,
        child(log.url, tmp_path, 0, 2) as one,
        child(log.url, tmp_path, 1, 2) as other,
    ):
        told = [process.communicate(timeout=LONG)[0] for process in (one, other)]
    assert told[0] == told[1] and told[0].split() == [f"Q{n % 15}" for n in range(20)]
    assert set(log.asked().values()) == {1} and len(log.asked()) == 15
    lines = [len((tmp_path / f"{index}.jsonl").read_text().splitlines()) for index in range(2)]
    assert sum(lines) == 15 and min(lines) > 0


def test_a_process_that_never_comes_is_named(tmp_path):
    with ReplyLog.of(tmp_path) as log, pytest.raises(InputError, match=r"nothing came from host 1 for 0\.3 s"):
        ask(Counting(), questions(*"abcdefgh"), Decoding(), Kept(log, Host(0, 2), 0.3))


def failing(detail: str, after: float = 0.0) -> Counting:
    def say(question: Question) -> Failure:
        time.sleep(after)
        return Failure("timeout", detail)

    return Counting(say=say)


def test_failures_of_others_are_owed_again(tmp_path):
    """Both processes end with the newer ones; where nobody asks again, the older ones stand."""
    texts = questions(*"abcdefgh")
    with ReplyLog.of(tmp_path, 1) as log:
        ask(failing("old"), texts, Decoding(), Kept(log))

    def again(index: int, patience: float) -> list[str]:
        with ReplyLog.of(tmp_path, index) as log:
            how = Kept(log, Host(index, 2), patience, failed_again=True)
            return [one.detail for one in ask(failing("new", 0.05 * index), texts, Decoding(), how)]

    with ThreadPoolExecutor() as pool:
        one = pool.submit(again, 1, 60.0)
        while len((tmp_path / "1.jsonl").read_text().splitlines()) == 8:  # the other one is done before this one begins
            time.sleep(0.01)
        found = [again(0, 60.0), one.result()]
    assert found == [["new"] * 8] * 2
    with ReplyLog.of(tmp_path) as log:
        how = Kept(log, Host(0, 2), 0.2, failed_again=True)
        assert {one.detail for one in ask(failing("newest"), texts, Decoding(), how)} == {"new", "newest"}


def test_hosts_that_are_connected_wait_for_what_the_first_one_has(tmp_path, monkeypatch):
    """Not for anything under the same key: the log of this host still shows an older failure."""
    (question,) = questions("a")
    key, new = key_of("one", question, Decoding()), Failure("timeout", "new")
    with ReplyLog.of(tmp_path) as log:
        log.add(question, Decoding(), 0, Entry(key, "one", Failure("timeout", "old")))

    def seen(folder, same):
        assert not same(folder)
        with ReplyLog.of(tmp_path) as first:
            first.add(question, Decoding(), 0, Entry(key, "one", new))
        assert same(folder)

    monkeypatch.setattr(asking.jax, "process_count", lambda: 2)
    monkeypatch.setattr(asking, "first_host", lambda: False)
    monkeypatch.setattr(asking, "agreed", lambda marks: np.stack([asking._mark(new)]))
    monkeypatch.setattr(asking, "seen", seen)
    assert asking._as_the_first(Kept(ReplyLog.of(tmp_path, None)), {}, [key]) == {key: new}


def test_an_entry_is_what_it_was(tmp_path):
    entry = Entry("k", "m", Reply("half \ud83d", "stop", (Candidate("x", float("-inf")),)))
    with ReplyLog.of(tmp_path) as log:
        log.add(Question.of("a"), Decoding(), 0, entry)
    (read,) = ReplyLog.of(tmp_path, None).entries().values()
    assert read.outcome.text == "half \ud83d" and read.outcome.logprobs == (Candidate("x", -1e9),)


@pytest.mark.parametrize("messages, told", [
    ((), "does not end with the user"), ((Message("user", "a"), Message("assistant", "b")), "does not end with the user"),
    ((Message("human", "a"),), "has the role 'human'"), ((Message("system", "s"), Message("user", "\ud83d")), r"field 'messages\[1\]': holds half of a surrogate"),
])  # fmt: skip
def test_questions_that_are_none(messages, told):
    with pytest.raises(InputError, match=told):
        Question(messages)
