"""The form of a benchmark's result, and when the command fails."""

from __future__ import annotations

import json

import pytest

from benchmarks import result, rollouts


@pytest.mark.parametrize(
    ("value", "entry", "met"),
    [
        (2.0, result.at_most, True),
        (2.1, result.at_most, False),
        (2.0, result.at_least, True),
        (1.9, result.at_least, False),
    ],
)
def test_a_target_is_met_from_its_side(value, entry, met):
    assert result.met(entry("a", value, 2.0, "ms", "how")) is met


def test_a_missed_target_is_no_failure_and_what_was_not_measured_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(result, "RESULTS", tmp_path / "results")
    missed = result.at_most("fast", 9.0, 2.0, "ms", "how")

    def good():
        return [missed]

    def broken():
        raise OSError("no disk")

    assert result.run("x", ["fast"], [good], ["numpy"]) == 0
    assert result.run("x", ["fast", "slow"], [broken, good], ["numpy"]) == 1
    out = capsys.readouterr()
    assert "slow: not measured" in out.out
    assert "OSError: no disk" in out.err
    written = json.loads((tmp_path / "results" / "x.json").read_text())
    assert written["entries"] == [missed]
    assert missed == {
        "name": "fast",
        "value": 9.0,
        "target": 2.0,
        "better": "lower",
        "unit": "ms",
        "detail": "how",
    }
    assert set(written["versions"]) == {"python", "numpy"}
    assert written["machine"]["cores"] >= 1


def test_a_part_that_is_measured_again_keeps_the_other_entries_in_their_order(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(result, "RESULTS", tmp_path)
    old, other = (result.at_most(name, 9.0, 2.0, "ms", "then") for name in ("gap", "head"))
    assert result.run("x", ["head", "gap"], [lambda: [old, other]]) == 0
    new, added = (result.at_most(name, 1.0, 2.0, "ms", "now") for name in ("gap", "first"))
    names = ["first", "head", "gap"]
    assert result.run("x", names, [lambda: [new, added]], keep_others=True) == 0
    file = tmp_path / "x.json"
    assert json.loads(file.read_text())["entries"] == [added, other, new]
    file.write_text(file.read_text().replace('"python": "3', '"python": "2'))
    with pytest.raises(ValueError, match="is of other versions"):
        result.run("x", names, [], keep_others=True)


def test_the_command_expects_every_entry_that_its_modules_make():
    folder = result.RESULTS.parent
    source = "".join((folder / f"{module}.py").read_text() for module in rollouts.MODULES)
    literal = [name for name in rollouts.EXPECTED if f'"{name}"' in source]
    assert sorted(set(rollouts.EXPECTED) - set(literal)) == [
        "axpo_vs_grpo_wall_batch",
        "axpo_vs_grpo_wall_carry_cpu",
        "axpo_vs_grpo_wall_carry_idle_slots",
        "axpo_vs_grpo_wall_streaming",
        "axpo_vs_grpo_wall_streaming_cpu",
        "axpo_vs_grpo_wall_streaming_idle_slots",
    ]
    assert 'f"axpo_vs_grpo_wall_{name}_{kind}"' in source
    assert 'f"axpo_vs_grpo_wall_{name}"' in source
