"""What each family of the randomisation buys: which cases vary, and how networks are compared."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
from toys import toy_case

from cmb_bids.errors import UsageError
from cmb_bids.simulate import PROTOCOLS
from cmb_bids.training import ablation, trials
from cmb_bids.training.families import (
    FAMILIES,
    cases_in_which_it_varies,
    drawn_again,
)
from cmb_bids.training.fit import FitConfig
from cmb_bids.training.recipes import COARSE_OVERSAMPLING, OVERSAMPLING, draw_recipe
from cmb_bids.training.shards import case_path, save_case, split_at

SEED = 3


def drawn(index, training=True):
    return draw_recipe(np.random.default_rng([SEED, index]), training)


def write_cases(folder, number):
    """Toy candidates of cases that were drawn as real ones are."""
    for index in range(number):
        case = toy_case(index)
        spec, recipe = drawn(index, split_at(index) == "train")
        case.recipe |= dataclasses.asdict(recipe) | {"signal_to_noise": spec.signal_to_noise}
        save_case(case, case_path(folder, index))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(trials, "FitConfig", partial(FitConfig, batch_size=8))
    monkeypatch.setattr(ablation, "FEWEST_JUDGED", 1)
    write_cases(tmp_path, 30)
    return tmp_path


def run(folder, *words):
    """Results of the command, written beside the cases."""
    few = ["--steps", "1", "--cases", "4", "--cases-seed", str(SEED)]
    written = folder / "ablation.json"
    arguments = ["--shards", str(folder), *few, "--output", str(written), *words]
    assert ablation.main(arguments) == 0
    return json.loads(written.read_text())


@pytest.mark.parametrize("name", FAMILIES)
def test_each_family_varies_in_some_training_cases_and_in_others_not(name):
    varies = [FAMILIES[name].varies(*drawn(index)) for index in range(100)]
    assert 10 <= sum(varies) <= 75


@pytest.mark.parametrize("name", ["grid", "noise", "interpolation", "slab", "faint-lesions"])
def test_scans_that_are_held_out_keep_what_is_usual(name):
    assert not any(FAMILIES[name].varies(*drawn(index, training=False)) for index in range(40))


def test_a_family_is_asked_of_the_very_scan():
    spec, recipe = drawn(0)
    usual = PROTOCOLS[recipe.protocol]
    plain = dataclasses.replace(spec, echo_times_s=usual.echo_times_s, motion_mm=0, ghost=0)
    late = dataclasses.replace(spec, echo_times_s=(1.3 * usual.echo_times_s[-1],))
    assert [FAMILIES["echo"].varies(one, recipe) for one in (plain, late)] == [False, True]
    ghosts = dataclasses.replace(plain, ghost=0.02)
    assert [FAMILIES["motion"].varies(one, recipe) for one in (plain, ghosts)] == [False, True]
    for grid, faint in ((OVERSAMPLING, False), (COARSE_OVERSAMPLING, True)):
        made = dataclasses.replace(recipe, oversampling=grid[recipe.protocol])
        assert FAMILIES["faint-lesions"].varies(spec, made) == faint
    gaps = dataclasses.replace(spec, protocol=dataclasses.replace(spec.protocol, slice_gap=0.1))
    assert FAMILIES["interpolation"].varies(gaps, recipe)


def test_a_case_is_drawn_again_from_its_number(folder):
    path = case_path(folder, 2)
    assert drawn_again(path, SEED) == drawn(2)
    family = FAMILIES["contrast"]
    assert cases_in_which_it_varies([path], family, SEED) == [path] * family.varies(*drawn(2))
    with pytest.raises(UsageError, match=r"case-00002.npz was not simulated with seed 4|--cases"):
        drawn_again(path, SEED + 1)


def test_ablation_judges_what_varied_training_cases_buy(folder, capsys):
    result = run(folder, "--families", "contrast", "motion", "--repeats", "2")
    train = [i for i in range(30) if split_at(i) == "train"]
    judged = train[::4]
    for family in result["families"]:
        varies = FAMILIES[family["family"]].varies
        assert int(family["varied"].split()[0]) <= 4
        at_home = family["at_home"]
        assert at_home["cases_judged"] == sum(varies(*drawn(i)) for i in judged)
        assert at_home["microbleeds"] == 3 * at_home["cases_judged"]
        assert len(at_home["f1_of_each_regardless"]) == 2
        gain = at_home["regardless"]["f1"]["value"] - at_home["without"]["f1"]["value"]
        assert at_home["gain"]["f1"]["difference"] == pytest.approx(gain, abs=2e-4)
        assert family["outside"] is None
    said = capsys.readouterr().out
    assert "flip angle" in said
    assert "| - | - | - | - | - |" in said


def test_networks_without_a_family_learn_from_cases_without_it(folder, monkeypatch):
    learned = []

    def learn(train, validation, config, mirrors, learner):
        learned.append([int(path.stem.split("-")[1]) for path in train])
        return trials.learn(train, validation, config, mirrors, learner)

    monkeypatch.setattr(ablation, "learn", learn)
    run(folder, "--families", "contrast", "--repeats", "2")
    regardless, another, without = learned
    assert regardless != another
    assert {len(numbers) for numbers in learned} == {4}
    assert not any(FAMILIES["contrast"].varies(*drawn(i)) for i in without)
    judged = [i for i in range(30) if split_at(i) == "train"][::4]
    assert not set(judged).intersection(*[set(numbers) for numbers in learned])


def test_ablation_judges_what_varied_patches_buy(folder, capsys, monkeypatch):
    shares = []

    def learn(train, validation, config, mirrors, learner):
        shares.append((config.transplanted, config.drawn_veins))
        return trials.learn(train, validation, config, mirrors, learner)

    monkeypatch.setattr(ablation, "learn", learn)
    words = ["--families", "drawn-veins", "transplants", "--repeats", "1"]
    veins, transplants = run(folder, *words)["families"]
    assert shares == [(0.25, 0.3), (0.25, 0), (0, 0.3)]
    assert veins["at_home"]["regardless"] == transplants["at_home"]["regardless"]
    assert "30% of patches" in capsys.readouterr().out


def test_networks_are_judged_on_scans_of_other_simulators_too(folder, monkeypatch):
    outside = [toy_case(100), toy_case(101)]
    asked = []
    monkeypatch.setattr(
        ablation, "scans_outside", lambda pairs: asked.extend(map(tuple, pairs)) or outside
    )
    words = ["--families", "motion", "--repeats", "1", "--outside", str(folder), str(folder / "l")]
    result = run(folder, *words)
    assert asked == [(folder, folder / "l")]
    (family,) = result["families"]
    assert (family["outside"]["cases_judged"], family["outside"]["microbleeds"]) == (2, 6)
    f1 = family["outside"]["regardless"]["f1"]["value"]
    assert family["outside"]["f1_of_each_regardless"] == [pytest.approx(f1, abs=1e-3)]


def test_too_few_cases_are_refused(folder, capsys):
    few = ["--shards", str(folder), "--steps", "1", "--cases-seed", str(SEED), "--repeats", "1"]
    assert ablation.main([*few, "--cases", "99"]) == 65
    assert "too few" in capsys.readouterr().err
    assert ablation.main([*few, "--cases", "12", "--families", "mask"]) == 65
    assert "hardly varies" in capsys.readouterr().err
    assert ablation.main([*few[:-3], str(SEED + 1), "--cases", "4", "--families", "mask"]) == 64
