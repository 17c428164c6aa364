"""Evaluation prompts: reading them, and choosing pairs of prompt and seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_diffaccel.measure.prompts import Purpose, default_prompts, digest, select, used
from pytest_diffaccel.models.registry import ModelSpec

PROMPTS = tuple(f"prompt {number}" for number in range(10))
SEEDS = st.integers(-(2**70), 2**70)


def test_defaults_are_64_varied_prompts() -> None:
    prompts = default_prompts(ModelSpec.from_hub("SDXL"))
    assert len(prompts) == len(set(prompts)) == 64
    assert max(map(len, prompts)) > 2 * min(map(len, prompts))


def test_embedded_pipelines_bring_their_own() -> None:
    spec = ModelSpec.from_embedded("SD1.5")
    if not Path(spec.location).is_dir():
        pytest.skip("SD1.5 is not trained yet")
    prompts = default_prompts(spec)
    assert len(prompts) >= 32
    assert all("background" in prompt for prompt in prompts)


@given(seed=SEEDS, count=st.integers(1, 40), number=st.integers(1, 12))
def test_search_and_winner_share_nothing(seed: int, count: int, number: int) -> None:
    search = select(PROMPTS[:number], count, seed, "search")
    winner = select(PROMPTS[:number], count, seed, "winner")
    assert not {seed for _, seed in search} & {seed for _, seed in winner}
    if number > 1:
        assert not {prompt for prompt, _ in search} & {prompt for prompt, _ in winner}
    for pairs in (search, winner):
        assert len({seed for _, seed in pairs}) == count
        assert all(0 <= seed < 2**32 for _, seed in pairs)


@given(seed=SEEDS, purpose=st.sampled_from(["search", "winner"]))
def test_a_shorter_selection_begins_a_longer_one(seed: int, purpose: Purpose) -> None:
    assert select(PROMPTS, 3, seed, purpose) == select(PROMPTS, 17, seed, purpose)[:3]


def test_a_winners_prompts_never_choose_under_any_seed() -> None:
    searched = {prompt for seed in range(20) for prompt, _ in select(PROMPTS, 5, seed, "search")}
    assert searched == set(PROMPTS[::2])
    assert {prompt for prompt, _ in select(PROMPTS, 99, 7, "winner")} == set(PROMPTS[1::2])


def test_a_half_is_used_up_before_it_comes_round() -> None:
    pairs = select(PROMPTS, 10, 3, "search")
    assert len({prompt for prompt, _ in pairs[:5]}) == 5
    assert [prompt for prompt, _ in pairs[:5]] == [prompt for prompt, _ in pairs[5:]]


def test_seeds_and_order_are_pinned() -> None:
    """Stored measurements name their prompts by digest and seed: the choice must never change by accident."""
    assert select(PROMPTS, 3, 0, "search") == [("prompt 0", 0), ("prompt 4", 1), ("prompt 6", 2)]
    assert [seed for _, seed in select(PROMPTS, 2, 1, "winner")] == [3 * 65536, 3 * 65536 + 1]
    assert digest(("a", "b")) == "7e18f737311b"


def test_repetitions_count_once() -> None:
    assert select(["a", "a"], 2, 0, "winner") == [("a", 65536), ("a", 65537)]


def test_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="no prompts"):
        select([], 1, 0, "search")
    with pytest.raises(ValueError, match="valid: search, winner"):
        select(PROMPTS, 1, 0, "gate")  # type: ignore[arg-type]
    for count in (0, 65537):
        with pytest.raises(ValueError, match="valid: 1 to 65536"):
            select(PROMPTS, count, 0, "search")


def test_digest_tells_order_and_content_apart() -> None:
    assert len({digest(("a", "b")), digest(("b", "a")), digest(("a",)), digest(("a b",))}) == 4
    assert len(digest(PROMPTS)) == 12


@pytest.mark.parametrize(
    ("prompts", "samples", "said"),
    [
        (9, 3, "of 9 prompts in p.txt, 3 choose winners and 3 others verify them"),
        (9, 32, "of 9 prompts in p.txt, 5 choose winners and 4 others verify them"),
        (3, 32, "of 3 prompts in p.txt, 2 choose winners and 1 other verifies them"),
        (1, 8, "of 1 prompt in p.txt, the same one chooses winners and verifies them; give more"),
    ],
)
def test_how_many_are_used_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts: int, samples: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("\n".join(PROMPTS[:prompts]), encoding="utf-8")
    assert used(Path("p.txt"), samples) == said


def test_column_and_repetitions_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.csv").write_text("id,Text\n1,a cat\n2,a dog\n3,a cat\n", encoding="utf-8")
    assert used(Path("p.csv:text"), 8, gate=True) == (
        "of 2 prompts in p.csv (column 'Text', without 1 repetition), 1 is drawn"
    )
