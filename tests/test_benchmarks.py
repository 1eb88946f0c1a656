from benchmarks import sam_step


def test_the_cost_of_a_sam_step_is_printed(capsys):
    assert sam_step.main(["--arch", "test_vit", "--batch-size", "2", "4", "--precision", "fp32", "--device", "cpu",
                          "--steps", "3"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert [row[:2] for row in rows] == [["2", "SAM"], ["2", "ASAM"], ["4", "SAM"], ["4", "ASAM"]]
    assert all(0 < float(row[3]) < float(row[2]) for row in rows)  # what is outside, and the whole step
