"""An external judge of answers: a command of the user's, asked with JSON on its input, that says yes or no as JSON (6.3).

What it talks to is its own affair. Credentials reach it through the environment alone: they are no part of the command, of what is
asked, or of anything that is written down.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from avcl_core.data.atomic import digest_of
from avcl_core.errors import ConfigError

ATTEMPTS = 3
"""Calls until an answer counts as not judged."""
RUBRIC = (
    "Decide whether the prediction means the same as the reference answer to the question. Count as right: synonyms and "
    "paraphrases, a member for its category, a part for its whole, and shorter forms. Score 5 for full agreement, 4 for right but "
    "incomplete, 3 for very weak agreement, 2 for related but wrong, 1 for wrong. Reply with one JSON object: score (integer 1 to 5), "
    "pred (yes if the prediction is right, otherwise no), reason (one sentence)."
)
"""What the judge is asked to do (the criteria of avqacl_moe.md 6.3, in our words)."""


@dataclass(frozen=True)
class Verdict:
    """What the judge said of one answer: ``score`` 1…5, ``pred`` yes or no, and why."""

    score: int
    pred: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """Why there is no verdict after all attempts."""

    reason: str


@dataclass(frozen=True)
class JudgeCommand:
    """How the judge is asked.

    Attributes:
        command: program and arguments. It reads ``{question, answer, predicted, rubric, model, temperature}`` and writes
            ``{score, pred, reason}``.
        model: the judge's pinned name, which goes to it and into the report.
        credentials: names of environment variables that the command needs; their values are struck out of all that is recorded.
        temperature: what the judge samples with; the authors' value.
        seconds: after which a call is given up.
        pause: seconds before the second call, twice as many before the third.
        sleep: how to wait.

    Raises:
        ConfigError: no command, no model, a credential that is not set, or one that stands in the command.
    """

    command: tuple[str, ...]
    model: str
    credentials: tuple[str, ...] = ()
    temperature: float = 0.01
    seconds: float = 60.0
    pause: float = 1.0
    sleep: Callable[[float], None] = field(default=time.sleep, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.command or not self.model:
            found = "no command" if not self.command else "no model"
            raise ConfigError(f"judge: found {found}; expected the command of a judge and its pinned model; name both")
        unset = [name for name in self.credentials if not os.environ.get(name)]
        if unset:
            raise ConfigError(f"judge: credentials {', '.join(unset)} are not set; set them in the environment")
        if any(value in part for value in self._secrets() for part in self.command):
            raise ConfigError("judge: a credential stands in the command; pass it through the environment alone")

    @property
    def identity(self) -> str:
        """Digest of everything that a verdict depends on beside the answer: command, model, temperature, rubric."""
        return digest_of([list(self.command), self.model, self.temperature, RUBRIC])

    def ask(self, question: str, answer: str, predicted: str) -> Verdict | Failure:
        """Return the verdict on ``predicted``, or why there is none after :data:`ATTEMPTS` calls.

        Raises:
            ConfigError: the command cannot be started.
        """
        asked: dict[str, Any] = {"question": question, "answer": answer, "predicted": predicted}
        asked |= {"rubric": RUBRIC, "model": self.model, "temperature": self.temperature}
        text, reason = json.dumps(asked, ensure_ascii=False), ""
        for attempt in range(ATTEMPTS):
            if attempt:
                self.sleep(self.pause * 2 ** (attempt - 1))
            reply = self._call(text)
            found = reply if isinstance(reply, Failure) else verdict_of(reply)
            if isinstance(found, Verdict):
                return Verdict(found.score, found.pred, self._redacted(found.reason))
            reason = found.reason
        return Failure(f"{ATTEMPTS} calls failed; the last: {reason}")

    def _call(self, text: str) -> str | Failure:
        try:
            done = subprocess.run(
                self.command, input=text.encode(), capture_output=True, timeout=self.seconds, check=False
            )
        except OSError as error:
            raise ConfigError(f"judge: {self.command[0]}: {error.strerror}; name a command that can be run") from None
        except subprocess.TimeoutExpired:
            return Failure(f"no reply within {self.seconds:g} s")
        if done.returncode:
            last = self._redacted(done.stderr.decode(errors="replace")).strip().splitlines()[-1:]
            return Failure(f"exit code {done.returncode}{f': {last[0]}' if last else ''}")
        return self._redacted(done.stdout.decode(errors="replace"))

    def _secrets(self) -> list[str]:
        return [value for name in self.credentials if (value := os.environ.get(name))]

    def _redacted(self, text: str) -> str:
        for value in sorted(self._secrets(), key=len, reverse=True):
            text = text.replace(value, "***")
        return text


def verdict_of(reply: str) -> Verdict | Failure:
    """Return the verdict that a reply holds, or what is malformed about it."""
    try:
        value = json.loads(reply)
    except json.JSONDecodeError:
        return Failure(f"reply {reply.strip()[:80]!r} is no JSON")
    if not isinstance(value, Mapping):
        return Failure(f"reply {reply.strip()[:80]!r} is no JSON object")
    score, pred, reason = value.get("score"), value.get("pred"), value.get("reason")
    if type(score) is not int or not 1 <= score <= 5:
        return Failure(f"score {score!r}; expected an integer 1 to 5")
    if pred not in ("yes", "no"):
        return Failure(f"pred {pred!r}; expected yes or no")
    if not isinstance(reason, str):
        return Failure(f"reason {reason!r}; expected a text")
    return Verdict(score, pred, reason)
