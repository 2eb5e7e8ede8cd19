"""Randomly changed files, for tests that readers raise only errors that a user can fix."""

import copy
import json
import math
import os

FILES = int(os.environ.get("IFKD_FUZZED_FILES", "200"))
"""Files that each fuzz test changes in all."""
JUNK = (
    None,
    True,
    -1,
    0,
    1,
    1e308,
    -1e308,
    math.nan,
    math.inf,
    10**30,
    10**400,
    0.5,
    "",
    "a",
    "7",
    "../a.png",
    "/etc/passwd",
    "\x00",
    "a\nb\x1b[31m",
    "\ud800",
    "x" * 5000,
    "<script>alert(1)</script>",
    [],
    [1, 2],
    [[[[]]]],
    {},
    {"id": 1},
)


def paths_in(value, path=()):
    """Yield the paths of all values inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from paths_in(inner, (*path, key))


def scrambled_content(content, rng):
    """Return a randomly changed copy as JSON text."""
    content = json.loads(json.dumps(content))
    for _ in range(rng.randint(1, 6)):
        paths = list(paths_in(content))
        if not paths:
            break
        *parents, last = rng.choice(paths)
        holder = content
        for key in parents:
            holder = holder[key]
        action = rng.random()
        if action < 0.6:
            holder[last] = copy.deepcopy(rng.choice(JUNK))
        elif action < 0.75:
            del holder[last]
        elif isinstance(holder, list):
            holder.append(holder[last])
        else:
            holder[rng.choice(["id", "bbox", "iscrowd", "scene", "area"])] = copy.deepcopy(rng.choice(JUNK))
    return json.dumps(content)


def scrambled_bytes(original, rng):
    """Return bytes, some of them changed, removed or repeated."""
    content = bytearray(original)
    for _ in range(rng.randint(1, 20)):
        if not content:
            break
        position, action = rng.randrange(len(content)), rng.random()
        if action < 0.7:
            content[position] = rng.randrange(256)
        elif action < 0.8:
            del content[position : position + rng.randint(1, 40)]
        elif action < 0.9:
            content[position:position] = content[position : position + rng.randint(1, 40)]
        elif action < 0.93:
            del content[position:]
    return bytes(content)
