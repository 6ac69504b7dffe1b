"""What the table of AUC over decay says."""

from benchmarks.decay import table


def test_table_says_what_the_axis_moves_and_how_far_seeds_are_apart() -> None:
    rows = [
        {"decay": 0.0, "val_auc": [0.80, 0.82], "best_epoch": [3, 4]},
        {"decay": 0.5, "val_auc": [0.90, 0.90], "best_epoch": [5, 5]},
        {"decay": 30.0, "val_auc": [0.70, 0.70], "best_epoch": [1, 2]},
    ]
    _, *lines, last = table(rows).splitlines()
    assert [line.split() for line in lines] == [
        ["0", "0.8100", "±", "0.0141", "3,", "4"],
        ["0.5", "0.9000", "±", "0.0000", "5,", "5"],
        ["30", "0.7000", "±", "0.0000", "1,", "2"],
    ]
    assert last == "the axis moves 0.2000, seeds 0.0047"
