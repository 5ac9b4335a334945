"""The declared families of training and test tasks."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from lrenv.errors import InputError
from lrenv.trainees.families import training_numbers, training_task
from lrenv.trainees.mlp import MLPSpec
from lrenv.trainees.registry import build_trainee
from lrenv.trainees.specs import OptimizerSpec
from lrenv.trainees.tasks import DataSpec, Task, load_data
from lrenv.trainees.unseen import harsh_tasks, held_out_tasks, unseen_tasks

TRAINING = [training_task(i) for i in range(300)]
HELD_OUT = held_out_tasks()
FULL_SIZE = 784


def n_inputs(spec: DataSpec) -> int:
    """Inputs of a trainee on MNIST or a teacher, read from the specification."""
    return spec.projection or (spec.size**2 if spec.size else FULL_SIZE)


def test_training_tasks_are_drawn_by_number():
    assert [training_task(i) for i in range(20)] == TRAINING[:20]
    assert len({task.key() for task in TRAINING}) == 300


def test_training_tasks_do_not_depend_on_the_process():
    code = "from lrenv.trainees.families import training_task as task; "
    code += "print(*(task(i).key() for i in range(9)))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77"},
    )

    assert result.stdout.split() == [task.key() for task in TRAINING[:9]]


def test_the_key_of_a_task_is_stable():
    task = Task(
        DataSpec("digits"), MLPSpec((32,), "tanh", optimizer=OptimizerSpec("sgd", 0.9)), seed=5
    )

    assert task.key() == "9d7ade1e51460cae1282"


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 6},
        {"data": DataSpec("digits", n_train=10)},
        {"spec": MLPSpec((32,), optimizer=OptimizerSpec(beta2=0.99))},
        {"spec": MLPSpec((32,), label_noise=0.1)},
    ],
)
def test_whatever_changes_a_task_changes_its_key(other):
    task = Task(DataSpec("digits"), MLPSpec((32,)), seed=5)

    assert replace(task, **other).key() != task.key()


def test_test_tasks_are_disjoint_from_training_tasks_by_their_inputs():
    trained, tested = ({n_inputs(t.data) for t in tasks} for tasks in (TRAINING, HELD_OUT))

    assert tested == {FULL_SIZE}
    assert trained == {16, 32, 48, 49, 64, 196}
    assert {t.data.name for t in TRAINING} == {"teacher", "mnist-5k"}


def test_plain_tasks_are_disjoint_from_test_tasks_by_their_inputs():
    plain = [training_task(i, "plain") for i in range(300)]

    assert {n_inputs(task.data) for task in plain} == {48, 96, 196, 400}
    assert {w for task in plain for w in task.spec.hidden} == {32, 64, 96, 192, 256}


@pytest.mark.parametrize("family", ["varied", "plain"])
def test_widths_and_batch_sizes_of_test_tasks_are_outside_the_training_families(family):
    trained, tested = (
        {
            size
            for t in tasks
            for size in (("width", t.spec.hidden[0]), ("batch", t.spec.batch_size))
        }
        for tasks in ([training_task(i, family) for i in range(300)], HELD_OUT)
    )

    assert not trained & tested


def test_mixed_tasks_take_turns():
    mixed = [training_task(i, "mixed") for i in range(4)]

    assert mixed[::2] == TRAINING[:2]
    assert mixed[1::2] == [training_task(i, "plain") for i in range(2)]


def test_general_tasks_are_of_all_models_and_disjoint_from_test_tasks():
    tasks = [training_task(i, "general") for i in range(120)]
    kinds = [task.spec.kind for task in tasks]

    assert {kind: kinds.count(kind) for kind in kinds} == {
        "mlp": 75,
        "convnet": 15,
        "decoder": 15,
        "adapted-decoder": 15,
    }
    assert len({task.key() for task in tasks}) == 120
    assert {t.data.name for t in tasks} == {"mnist-5k", "teacher", "markov", "python-docs"}
    assert all(t.data.size or t.data.projection for t in tasks if t.data.name == "mnist-5k")
    assert "rmsprop" not in {t.spec.optimizer.name for t in tasks}
    for task in tasks[1:4]:
        trainee = build_trainee(task)
        assert trainee.backward().isfinite()


def test_wide_tasks_add_regression_few_examples_few_classes_and_brief_runs():
    tasks = [training_task(i, "wide") for i in range(320)]
    regression, scarce, easy, brief = (tasks[1 + 2 * k :: 8] for k in range(4))

    assert tasks[::2] == [training_task(i, "general") for i in range(160)]
    assert {t.spec.kind for t in regression} == {"regressor"}
    assert {t.data.name for t in regression} == {"halves", "codes", "teacher-outputs"}
    assert {t.data.n_train for t in scarce} == {100, 200, 400}
    assert {t.spec.kind for t in easy} == {"mlp", "convnet"}
    assert {t.data.n_classes for t in easy} == {2, 3, 5, 8}
    assert {t.spec.kind for t in brief} == {
        "mlp",
        "regressor",
        "convnet",
        "decoder",
        "adapted-decoder",
    }
    assert all(20 <= t.spec.total_steps <= 100 for t in brief)
    assert len({task.key() for task in tasks}) == 320
    assert all(t.data.size or t.data.projection for t in tasks if t.data.name == "mnist-5k")
    assert "rmsprop" not in {t.spec.optimizer.name for t in tasks}
    for task in tasks[1:17:2]:
        trainee = build_trainee(task)
        assert trainee.backward().isfinite()


def test_balanced_tasks_are_of_all_families_and_a_quarter_plain():
    tasks = [training_task(i, "balanced") for i in range(96)]

    assert tasks[::4] == [training_task(i, "plain") for i in range(24)]
    assert tasks[1::8] == [training_task(i, "convnet") for i in range(12)]
    assert tasks[2::12] == [training_task(i, "regression") for i in range(8)]
    assert tasks[15::16] == [training_task(i, "brief") for i in range(6)]
    assert len({task.key() for task in tasks}) == 96


def test_broad_tasks_add_many_passes_and_rough_conditions():
    tasks = [training_task(i, "broad") for i in range(360)]
    balanced, repeated, rough = (tasks[k::3] for k in range(3))

    # No policy of the balanced family has seen these, so that its descendants are selected fairly.
    numbers = training_numbers(3000)
    assert not set(balanced) & {training_task(i, "balanced") for i in numbers}
    assert {t.spec.kind for t in repeated} == {"mlp", "convnet", "regressor", "decoder"}
    assert all(60 <= t.data.n_train <= 1500 for t in repeated)
    batches = [min(t.spec.batch_size, t.data.n_train) for t in repeated]
    passes = [
        t.spec.total_steps * n / t.data.n_train for t, n in zip(repeated, batches, strict=True)
    ]
    assert max(passes) > 200
    assert {t.spec.kind for t in rough} == {"mlp", "changing-mlp"}
    for values, low, high in (
        ([t.spec.batch_size for t in rough], 4, 512),
        ([t.spec.init_scale for t in rough], 0.2, 8.0),
        ([t.spec.label_noise for t in rough if t.spec.label_noise], 0.0, 0.6),
    ):
        assert low <= min(values) < low + 0.02 * high
        assert high >= max(values) > 0.8 * high
    assert len({task.key() for task in tasks}) == 360
    assert all(t.data.size or t.data.projection for t in tasks if "mnist-5k" in t.data.name)
    assert "rmsprop" not in {t.spec.optimizer.name for t in tasks}
    for task in tasks[:30]:
        trainee = build_trainee(task)
        assert trainee.backward().isfinite()


def test_renamed_data_is_any_data_with_its_classes_renamed_behind():
    once, twice = (load_data(DataSpec(name, size=7)) for name in ("mnist-5k", "renamed-mnist-5k"))
    n = len(once.y_train)

    assert torch.equal(twice.x_train, torch.cat([once.x_train, once.x_train]))
    assert torch.equal(twice.y_train[:n], once.y_train)
    assert not torch.equal(twice.y_train[n:], once.y_train)


def test_unknown_family():
    with pytest.raises(InputError, match="Expected a training family among varied, plain, mixed, "):
        training_task(0, "hard")


def test_there_are_24_test_tasks():
    assert held_out_tasks() == HELD_OUT
    assert len({task.key() for task in HELD_OUT}) == 24
    assert {task.data.name for task in held_out_tasks("digits")} == {"digits"}


@pytest.mark.parametrize(
    ("family", "steps"),
    [
        ("varied", (100, 1200)),
        ("plain", (100, 800)),
        ("convnet", (100, 5000)),
        ("decoder", (100, 5000)),
        ("scarce", (50, 600)),
        ("easy", (100, 1000)),
        ("brief", (20, 100)),
        ("repeated", (100, 1200)),
        ("rough", (50, 1200)),
    ],
)
def test_lengths_are_spread_over_their_bounds(family, steps):
    lengths = sorted(training_task(i, family).spec.total_steps for i in range(200))

    assert steps[0] <= lengths[0] < 1.2 * steps[0]
    assert steps[1] >= lengths[-1] > steps[1] / 1.2
    assert lengths[100] == pytest.approx((steps[0] * steps[1]) ** 0.5, rel=0.25)


def test_training_tasks_vary_in_all_that_is_declared():
    specs = [task.spec for task in TRAINING]

    assert {s.activation for s in specs} == {"relu", "tanh", "gelu"}
    assert {s.optimizer.name for s in specs} == {"sgd", "adam", "adamw"}
    assert {len(s.hidden) for s in specs} == {1, 2, 3}
    assert {s.batch_size for s in specs} == {8, 16, 32, 64, 128}
    assert all(0.5 <= s.init_scale <= 2.0 for s in specs)
    assert all(0.0 <= s.label_noise <= 0.3 for s in specs)
    assert all(s.optimizer.weight_decay > 0 for s in specs if s.optimizer.name == "adamw")


@pytest.mark.parametrize("index", range(6))
def test_the_data_of_a_training_task_is_as_specified(index):
    spec = TRAINING[index].data
    data = load_data(spec)

    assert data.n_features == n_inputs(spec)
    assert data.n_classes == spec.n_classes
    assert len(data.x_train) == len(data.y_train) == (spec.n_train or 3000)
    assert data.x_train.mean().item() == pytest.approx(0.0, abs=0.1)
    assert data.x_train.std().item() == pytest.approx(1.0, abs=0.1)
    assert len(data.x_val) == 1000


def test_fewer_examples_are_the_first_ones():
    whole, part = (load_data(DataSpec("digits", n_train=n)) for n in (0, 100))

    assert torch.equal(part.x_train, whole.x_train[:100])
    assert torch.equal(part.y_train, whole.y_train[:100])
    assert torch.equal(part.x_val, whole.x_val)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "swish"}, "relu, tanh, gelu; got 'swish'"),
        ({"batch_size": 0}, "Expected batch_size of at least 1, got 0"),
        ({"total_steps": -1}, "Expected total_steps of at least 1, got -1"),
    ],
)
def test_an_impossible_specification_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        MLPSpec(**changes)


def test_runs_in_lockstep_may_differ_in_what_is_not_their_shape():
    spec = MLPSpec((4,), optimizer=OptimizerSpec("sgd", 0.9))
    other = MLPSpec(
        (4,),
        optimizer=OptimizerSpec("sgd", 0.1, weight_decay=0.1),
        label_noise=0.1,
        init_scale=2.0,
        lr_multiplier=3.0,
    )

    assert other.shape == spec.shape
    assert replace(spec, batch_size=3).shape != spec.shape


def test_unseen_tasks_are_24_of_six_families_and_learn_on_other_data():
    tasks = unseen_tasks()
    trained_on = {
        training_task(i, family).data.name.removeprefix("renamed-")
        for family in ("general", "adapted", "wide", "assorted", "sundry")
        for i in range(200)
    }

    assert len(tasks) == len({task.key() for task in tasks.values()}) == 24
    assert len({name.rsplit(" ", 1)[0] for name in tasks}) == 6
    tested_on = {task.data.name for task in [*tasks.values(), *harsh_tasks().values()]}
    assert not {name.removeprefix("renamed-") for name in tested_on} & trained_on
    assert tasks == unseen_tasks()
    assert set(unseen_tasks(heavy=True)) - set(tasks) == {
        "ResNet-18 on Fashion-MNIST",
        "LoRA on VirtualHome titles",
    }
    for task in tasks.values():
        if task.data.name != "fashion-mnist":  # which a machine may lack
            assert build_trainee(task).backward().isfinite()


def test_half_of_the_diverse_tasks_are_broad_and_the_others_on_data_drawn_for_each():
    tasks = [training_task(i, "diverse") for i in range(120)]
    pictures, tables, lasting = (tasks[1 + 2 * k :: 6] for k in range(3))

    assert tasks[::2] == [training_task(i, "broad") for i in range(60)]
    assert {t.data.name for t in pictures} == {"pictures"}
    assert {t.spec.kind for t in pictures} == {"mlp", "convnet"}
    assert {t.data.name for t in tables} == {"clusters"}
    assert len({t.data.seed for t in pictures + tables}) == 20
    assert {t.data.name for t in lasting} == {"mnist-5k", "clusters", "pictures"}
    assert all(1000 <= t.spec.total_steps <= 20_000 for t in lasting)
    assert max(t.spec.total_steps * t.spec.batch_size / t.data.n_train for t in lasting) > 1000
    assert len({task.key() for task in tasks}) == 120
    assert "rmsprop" not in {t.spec.optimizer.name for t in tasks}
    for task in tasks[1:13:2]:
        assert build_trainee(task).backward().isfinite()


def test_half_of_the_assorted_tasks_are_diverse_and_the_others_on_photographs():
    tasks = [training_task(i, "assorted") for i in range(40)]

    assert tasks[::2] == [training_task(i, "diverse") for i in range(20)]
    assert {t.data.name for t in tasks[1::2]} == {"photos"}
    assert {t.spec.kind for t in tasks[1::2]} == {"mlp", "convnet"}
    assert len({t.data.seed for t in tasks[1::2]}) == 20
    for task in tasks[1:9:2]:
        assert build_trainee(task).backward().isfinite()


def test_half_of_the_sundry_tasks_are_diverse_a_quarter_balanced_and_a_quarter_on_photographs():
    tasks = [training_task(i, "sundry") for i in range(40)]

    assert tasks[::2] == [training_task(i, "diverse") for i in range(20)]
    assert tasks[1::4] == [training_task(2 * 10**6 + i, "balanced") for i in range(10)]
    assert tasks[3::4] == [training_task(i, "photo") for i in range(10)]


def test_a_function_of_ones_own_is_a_family(tmp_path, monkeypatch):
    (tmp_path / "own_family.py").write_text(
        "from dataclasses import replace\n"
        "from lrenv.trainees.families import training_task\n"
        "def short(n):\n"
        "    task = training_task(n, 'plain')\n"
        "    return replace(task, spec=replace(task.spec, total_steps=30 + n))\n"
        "none = print\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")

    assert training_task(5, "own_family:short").spec.total_steps == 35
    with pytest.raises(InputError, match="own_family:none to return a Task, got a NoneType"):
        training_task(5, "own_family:none")
    with pytest.raises(InputError, match="Expected a family of tasks as module:name, got 'no:f'"):
        training_task(5, "no:f")
    with pytest.raises(InputError, match="Expected a training family among"):
        training_task(5, "plane")


def test_training_skips_the_tasks_that_are_held_out():
    assert training_numbers(720) == list(range(720))
    assert training_numbers(1003) == [*range(1000), 2000, 2001, 2002]
