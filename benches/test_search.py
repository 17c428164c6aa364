"""The search: one case per candidate, then one per group that verifies and records its winners."""


def test_search(diffaccel_candidate, diffaccel_search):
    """Measure one candidate: speed in blocks with the baseline, quality on the same prompts and seeds."""
    result = diffaccel_search.measure(diffaccel_candidate)
    assert result.figures.fired["denoiser_calls"] == diffaccel_candidate.cell.steps


def test_winners(diffaccel_group, diffaccel_search):
    """Choose a group's winners; after the cell's last group, measure those of all of them again and record them."""
    result = diffaccel_search.find_winners(diffaccel_group)
    assert result.accelerator == diffaccel_group[1]
