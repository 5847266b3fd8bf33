"""``ofqctl bench step`` as a person types it."""

from .conftest import TINY

TINY = TINY[1:]  # weights are random anyway
QUICK = ("--batch-size", 2, "--steps", 1, "--no-fused", "--device", "cpu")


def test_bench_step_shows_time_memory_and_ratios(ofqctl):
    ended = ofqctl("bench", "step", "vit_tiny_patch16_224", *TINY, "--recipe", "statsq", *QUICK)
    assert ended.code == 0
    for words in ("seconds, median", "peak memory above the model", "statsq (W2A2)", "ratio"):
        assert words in ended.out


def test_bench_step_takes_bits_and_assignments(ofqctl):
    arguments = ("--recipe", "statsq", "--wbits", 4, "--set", "activations.bits=3", "--amp", "bf16", "--json")
    result = ofqctl("bench", "step", "vit_tiny_patch16_224", *TINY, *arguments, *QUICK).json
    assert result["bits"] == {"weights": 4, "activations": 3}
    assert result["amp"] == "bf16"
    assert set(result["ratio"]) == {"seconds_median", "seconds_min", "peak_bytes"}
