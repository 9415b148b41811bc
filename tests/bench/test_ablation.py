"""The ablation trains every arm from the same start, goes on where it was stopped, and says what it measured."""

import json

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from bench import ablation
from bench.__main__ import main
from cbam_triton import CBAM


@pytest.fixture
def few_digits(monkeypatch):
    images, labels = ablation.load("digits")
    monkeypatch.setattr(ablation, "load", lambda name: (images[:160], labels[:160]))


def trained(folder, *options):
    return main(["ablation", "--out", str(folder), "--epochs", "1", "--seeds", "2", "--folds", "1", *options])


@pytest.mark.usefixtures("few_digits")
def test_an_ablation_goes_on_where_it_was_stopped(tmp_path, capsys, monkeypatch):
    train, calls = ablation.train, []

    def stopped(*arguments):
        calls.append(arguments[3])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*arguments)

    monkeypatch.setattr(ablation, "train", stopped)
    assert trained(tmp_path, "--arms", "SE", "pools, K = 7") == 130
    with (tmp_path / "runs.jsonl").open("a") as file:
        file.write('{"torn": \n')
    assert trained(tmp_path, "--arms", "SE", "pools, K = 7") == 0
    assert len(calls) == 3 + 2
    said = capsys.readouterr().out
    assert "line 3: skipped" in said
    assert "**Table 3: the arrangement**" in said
    assert (tmp_path / "ablation.png").stat().st_size > 1000
    assert trained(tmp_path, "--tables") == 0
    assert len(calls) == 5


@pytest.mark.usefixtures("few_digits")
def test_a_run_repeats_to_the_bit_and_arms_start_alike():
    images, labels = ablation.load("digits")
    part = next(ablation.folds(labels))
    runs = [ablation.train(images, labels, part, "max", 1, seed=3) for _ in range(2)]
    assert runs[0].accuracy == runs[1].accuracy
    nets = [ablation.network(arm, 0) for arm in ("none", "SE", "parallel")]
    for net in nets[1:]:
        assert torch.equal(net.blocks[2].branch[0].weight, nets[0].blocks[2].branch[0].weight)
        assert torch.equal(net.head.weight, nets[0].head.weight)


def test_every_arm_of_a_table_is_an_arm_and_has_the_parameters_of_its_kind():
    assert {arm for arms in ablation._TABLES.values() for arm in arms} == set(ablation.ARMS)
    counts = {arm: sum(p.numel() for p in ablation.network(arm, 0).parameters()) for arm in ablation.ARMS}
    assert counts["none"] < counts["SE"] == counts["max"] == counts["avg & max"] < counts["pools, K = 3"]
    assert counts["pools, K = 7"] == counts["spatial first"] == counts["parallel"]
    assert isinstance(ablation.network("SE", 0).blocks[0].cbam, CBAM)


def made_up(arm, fold, seed, accuracy):
    return ablation.Run("digits", 1, arm, fold, seed, accuracy, 1.0, 10, "2")


def test_tables_have_means_spread_and_differences_of_the_same_folds():
    runs = [made_up("SE", fold, seed, 0.9 + 0.01 * seed) for fold in range(2) for seed in range(2)]
    runs += [
        made_up("parallel", fold, seed, 0.92 + 0.01 * seed + 0.02 * fold) for fold in range(2) for seed in range(2)
    ]
    table = ablation.tables(runs)
    assert "| SE | 9.50 | ± 0.71 (2) |  | 10 | 1.0 |" in table
    assert "| parallel | 6.50 | ± 0.71 (2) | -3.00 ± 0.58 | 10 | 1.0 |" in table


@pytest.mark.parametrize("options, message", [
    (["--seeds", "0"], "--seeds"), (["--folds", "6"], "--folds"), (["--tables"], "has no run of digits with 1 epochs"),
])  # fmt: skip
def test_what_cannot_be_done_is_one_line(tmp_path, capsys, options, message):
    assert trained(tmp_path, *options) == 2
    assert message in capsys.readouterr().err


def test_a_line_of_a_run_reads_back(tmp_path):
    run = made_up("SE", 0, 0, 0.5)
    (tmp_path / "runs.jsonl").write_text(json.dumps(run._asdict()) + "\n")
    assert ablation.read(tmp_path / "runs.jsonl") == ([run], [])
