"""A golden entry and an environment made by hand, for tests of what is done with them."""

from pytest_diffaccel.records.environment import Environment
from pytest_diffaccel.records.golden import GoldenEntry

MET = GoldenEntry(
    status="met",
    params={"DeepCache": {"cache_interval": 2, "cache_branch_id": 0}},
    speedup=1.67,
    speedup_ci95=(1.65, 1.69),
    wall_speedup=1.71,
    wall_speedup_ci95=(1.6, 1.83),
    lpips=0.041,
    lpips_ci95=(0.036, 0.047),
    num_samples=32,
    batch_size=8,
    environment="3f9c2ab01d7e",
)
ENVIRONMENT = Environment(
    pipe="SD1.5",
    model_source="embedded stand-in, not SD1.5",
    weights={"unet": "0" * 64},
    device="a CPU (4 cores)",
    driver="",
    threads=1,
    versions={"python": "3.11.2", "torch": "2.14.1"},
    dtype="float32",
    image_size=(128, 128),
    batch_size=4,
    guidance_scale=5.0,
)
