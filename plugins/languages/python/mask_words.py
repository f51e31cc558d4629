"""Masks words in bodies, and drops messages whose body is empty.

The same policy as the Rust one in plugins/cookbook/mask-words; README.md here says how it is built.
"""

import json
import re

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import filter as verdicts

# Set by `init`: what finds any of the words, at each place the longest, and what takes the place of a character.
words = re.compile("(?!)")
mask = "*"


class Lifecycle(exports.Lifecycle):
    def init(self, config: str) -> None:
        """Reads the plugin's `config` table. `Err` refuses it, with the reason."""
        global words, mask
        table = json.loads(config)
        for key in table.keys() - {"words", "mask"}:
            raise Err(f"config: unknown field `{key}`, expected `words` or `mask`")
        wanted = table.get("words")
        if not isinstance(wanted, list) or not wanted or not all(isinstance(w, str) and w for w in wanted):
            raise Err("config.words: name at least one word, and no empty ones")
        mask = table.get("mask", "*")
        if not isinstance(mask, str) or len(mask) != 1:
            raise Err("config.mask: give one character")
        longest_first = sorted(wanted, key=len, reverse=True)
        words = re.compile("|".join(map(re.escape, longest_first)))


def verdict(message):
    if not message.body:
        return verdicts.Verdict_Drop("empty")
    try:
        before = message.body.decode()
    except UnicodeDecodeError:
        return verdicts.Verdict_Pass()
    after = words.sub(lambda word: mask * len(word[0]), before)
    if after == before:
        return verdicts.Verdict_Pass()
    amendment = verdicts.Amendment(after.encode(), None, None, None, None, [], [], [])
    return verdicts.Verdict_Amend(amendment)


class Filter(exports.Filter):
    def filter(self, source, messages):
        return [verdict(message) for message in messages]
