"""Words to configuration: what is understood, and what every mistake is told."""

import pytest

from gfmsum.budget import BUDGETS
from gfmsum.config import AblationConfig, ConfigError, Execution, LocalConfig, SyntheticConfig, load
from gfmsum.study import differences, plan


def test_no_words_give_the_defaults() -> None:
    assert load([]) == AblationConfig()


def test_words_reach_every_level() -> None:
    config = load(
        ["sensor=s2", "mix=s1+s2", "replicates=5", "margin=0.02", "data.world=7",
         "budget=micro", "budget.model.depth=2", "budget.learning_rate=1", "out=/tmp/x"]
    )  # fmt: skip
    assert (config.sensor, config.mix, config.replicates) == ("s2", "s1+s2", 5)
    assert config.data == SyntheticConfig(world=7)
    assert config.budget.name == "micro" and config.budget.model.depth == 2
    assert config.budget.learning_rate == 1.0
    assert config.budget.seen == BUDGETS["micro"].seen


def test_a_group_is_chosen_wherever_its_word_stands() -> None:
    config = load(["data.root=../x", "data=local"])
    assert config.data == LocalConfig(root="../x")
    assert config.data_name == "local"


def test_a_mix_without_a_sensor_is_plain_text() -> None:
    assert load(["mix=all-s1"]).mix == "all-s1"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("sensr=s1", r"unknown option 'sensr'.*did you mean 'sensor'\?"),
        ("budget=tinny", r"unknown budget 'tinny'.*did you mean 'tiny'\?"),
        ("data=local2", r"unknown data 'local2'.*did you mean 'local'\?"),
        ("budget.sen=3", r"unknown option 'budget.sen'.*did you mean 'budget.seen'\?"),
        ("data.root=x", r"unknown option 'data.root'"),
        ("replicates=0", "replicates=0 must be at least 1"),
        ("replicates=two", "replicates='two' must be a whole number"),
        ("replicates=1.5", "replicates=1.5 must be a whole number"),
        ("seed=null", "seed=None must be a whole number"),
        ("seed=true", "seed=True must be a whole number"),
        ("margin=0", "margin=0.0 must lie between 0 and 1"),
        ("device=gpu", "unknown device 'gpu'"),
        (
            "labels=1",
            "labels=1: '1' must be all, or a whole number that is at least 2; write labels=",
        ),
        ("labels=few", "labels=few: 'few' must be all, or a whole number"),
        ("labels=10+", r"labels=10\+: '' must be all, or a whole number"),
        ("labels=10+2.5", r"labels=10\+2.5: '2.5' must be all"),
        ("labels=10+010", r"labels=10\+010 must name each number once"),
        ("labels=all+all", r"labels=all\+all must name each number once"),
        ("sensor=s1,s2", "one plain value per key"),
        ("sensor=[s1]", "one plain value per key"),
        ("+sensor=s1", "one plain value per key"),
        ("~sensor", "one plain value per key"),
        ("sensor", "write key=value"),
        ("=s1", "unknown option ''"),
        ("budget.batch=0", "batch=0 at least 1"),
        ("budget.seen=10", "does not pay for one step"),
        ("budget.model.patch_px=5", "image_px=32 must be a multiple of patch_px=5"),
        ("budget.model.width=100", "multiples of"),
        ("data.test=3", "data.test=3 must be at least 60"),
        ("data.control=alas", r"unknown control 'alas'.*did you mean 'alias'\?"),
        ("data.target=s1", r"data.target=s1 needs a control; add data.control=alias"),
        ("data.control=help", r"data.scarce=0 must be at least 1 .*; add data.scarce=24"),
        ("data.scarce=24", "data.scarce=24 needs data.control=help"),
    ],
)
def test_mistakes_get_one_line(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load([word])
    assert "\n" not in str(caught.value)


def test_the_question_is_what_decides_the_numbers_and_nothing_else() -> None:
    plain = load([])
    assert load(["out=a", "store=b", "jobs=3", "device=cpu"]).question() == plain.question()
    for word in ("seed=1", "margin=0.02", "sensor=s2", "budget.batch=30", "data.world=1"):
        assert load([word]).question() != plain.question()


def test_few_labels_are_asked_for_by_default_and_in_any_order() -> None:
    assert load([]).label_counts == (10, 50, 0)
    assert load(["labels=7"]).label_counts == (7,)
    config = load(["labels=all+50+010"])
    assert config.labels == "10+50+all" and config.question() == load([]).question()
    other = load(["labels=all"])
    assert other.label_counts == (0,) and other.question() != config.question()
    assert load(differences(other)) == other
    assert [word for word in differences(other) if "labels" in word] == ["labels=all"]


def test_a_study_states_which_tasks_and_numbers_of_labels_are_averaged() -> None:
    words = ["sensor=s1", "mix=s1+s2", "data.tasks=landuse+diversity"]
    study, whole = plan(load(words)), plan(load([*words, "labels=all"]))
    names = [f"landuse_s1{at}" for at in ("@10", "@50", "")] + ["diversity_s1@50", "diversity_s1"]
    assert [task.name for task in study.tasks] == names
    assert list(study.design.tasks) == names
    assert [task.labels for task in study.tasks] == [10, 50, 0, 50, 0]
    assert len({study.name, whole.name}) == len({study.key, whole.key}) == 2
    assert study.design.fingerprint != whole.design.fingerprint
    seeds = [plan(load([*words, f"seed={seed}"])).key for seed in (0, 1)]
    assert seeds[0] == study.key != seeds[1]  # other labels are drawn


def test_a_control_aims_at_the_probed_sensor() -> None:
    for words in (["data.control=alias"], ["data.control=alias", "data.target=s2"]):
        assert load(["sensor=s2", *words]).data == SyntheticConfig(control="alias", target="s2")
    helped = AblationConfig(sensor="naip", data=SyntheticConfig(control="help", scarce=24))
    assert helped.data == SyntheticConfig(control="help", target="naip", scarce=24)
    with pytest.raises(
        ConfigError, match=r"data.target=s1 must be sensor=s2, whose tasks"
    ) as caught:
        load(["sensor=s2", "data.control=harm", "data.target=s1"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"data.scarce=24 needs data.control=help"):
        load(["data.control=alias", "data.scarce=24"])


def test_the_name_of_a_study_tells_a_control() -> None:
    for words, data in (([], "synthetic"), (["data.control=harm"], "synthetic-harm")):
        assert plan(load(["sensor=s2", "mix=s1+s2", *words])).name.startswith(
            f"s2-s1+s2-{data}-tiny-"
        )


@pytest.mark.parametrize("word", ["data.control=alias", "data.control=help data.scarce=9"])
def test_the_words_of_a_control_lead_back_to_it(word: str) -> None:
    config = load(["sensor=s2", "mix=s1+s2", *word.split()])
    assert load(differences(config)) == config


def test_how_runs_are_carried_out_is_no_part_of_the_question() -> None:
    words = ["devices=2", "accumulate=4", "recompute=true", "strategy=fsdp", "checkpoint_s=5"]
    config = load([*words, "device=cpu", "threads=3"])
    assert config.execution == Execution("cpu", 2, "fsdp", 3, 4, True, 5.0)
    assert config.question() == load([]).question()
    assert load(["parts=true"]).question() != load([]).question()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("recompute=1", "recompute=1 must be true or false"),
        ("parts=maybe", "parts='maybe' must be true or false"),
        ("devices=0", "devices=0 must be at least 1"),
        ("checkpoint_s=-1", "checkpoint_s=-1.0 must be at least 0"),
        ("budget.match=flop", "unknown match 'flop'"),
        ("threads=true", "threads=True must be a whole number"),
    ],
)
def test_wrong_kinds_of_values_get_one_line(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load([word])
