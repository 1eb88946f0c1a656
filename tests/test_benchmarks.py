import pytest

from benchmarks import caption_decoding, sam_step


def test_the_cost_of_a_sam_step_is_printed(capsys):
    assert sam_step.main(["--arch", "test_vit", "--batch-size", "2", "4", "--precision", "fp32", "--device", "cpu",
                          "--steps", "3"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[:2] for row in rows] == [["2", "SAM"], ["2", "ASAM"], ["4", "SAM"], ["4", "ASAM"]]
    assert all(0 < float(row[3]) < float(row[2]) for row in rows)  # what is outside, and the whole step


def test_the_time_of_a_caption_is_printed(capsys):
    assert caption_decoding.main(["--size", "small", "--tokens", "3", "--device", "cpu", "--repeats", "1"]) == 0
    kept, prefix, padded = (line.split() for line in capsys.readouterr().out.splitlines()[3:])
    assert [kept[0], prefix[0], padded[0]] == ["kept", "prefix", "padded"]
    for name, seconds, ratio in (prefix, padded):
        assert float(ratio) == pytest.approx(float(kept[1]) / float(seconds), rel=0.1, abs=0.02)
