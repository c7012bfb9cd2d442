"""Types of settings, and names of settings in errors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from attribution.checks import FieldError, listed, number, whole
from experiments.tasks.settings import SettingError, build, by_setting, check, check_run
from tests.experiments.tasks.test_configs import composed, options

HERE = "tests.experiments.tasks.test_settings"
FOLDERS = ("arrays", "artbench2", "celeba", "folder", "huggingface", "tiny_imagenet")


@dataclass(frozen=True)
class Part:
    """A part with a range of its own."""

    depth: int = 1

    def __post_init__(self):
        whole(self, "depth", least=1)


@dataclass(frozen=True)
class Whole:
    """Fields of every kind."""

    count: int = 1
    rate: float = 0.5
    on: bool = False
    name: str | None = None
    kind: Literal["a", "b"] = "a"
    values: int | Sequence[int] = 1
    table: Mapping[int, str] = field(default_factory=dict)
    part: Part | None = None
    parts: Sequence[Part] = ()

    def __post_init__(self):
        number(self, "rate", least=0, most=1)
        if not isinstance(self.values, int):
            listed(self, "values", lambda owner, name: whole(owner, name, least=0))


def config(**values: Any):
    described = {"_target_": f"{HERE}.Whole", **values}
    return OmegaConf.create({"seed": 3, "names": {0: "zero"}, "given": described})


def part(**values: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.Part", **values}


@pytest.mark.parametrize(
    "values",
    [
        {"count": 3, "rate": 1, "on": True, "name": "x", "kind": "b", "values": [1, 2], "table": {0: "x"}},
        {"rate": 0.25, "name": None, "values": 4, "part": part(depth=2), "parts": [part(), part(depth=3)]},
        {"count": "${seed}"},
    ],
)
def test_values_of_the_annotated_type_are_taken_as_they_are(values):
    """Claim: whole numbers are numbers, lists are sequences, nodes with a target are objects; nothing is converted."""
    built = build(config(**values), "given")
    for name, value in values.items():
        if not isinstance(value, str | dict | list):
            found = getattr(built, name)
            assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"count": "abc"}, "given.count=abc: must be a whole number"),
        ({"count": 1e3}, "given.count=1000.0: must be a whole number"),
        ({"count": True}, "given.count=true: must be a whole number"),
        ({"count": [1]}, "given.count=[1]: must be a whole number"),
        ({"count": None}, "given.count=null: must be a whole number"),
        ({"rate": "1e-3x"}, "given.rate=1e-3x: must be a number"),
        ({"rate": False}, "given.rate=false: must be a number"),
        ({"on": 1}, "given.on=1: must be true or false"),
        ({"name": 12}, "given.name=12: must be text or null (quote it: 'given.name=\"12\"')"),
        ({"kind": "c"}, "given.kind=c: must be a or b"),
        ({"values": [1, 2.5]}, "given.values[1]=2.5: must be a whole number"),
        ({"values": "all"}, "given.values=all: must be a whole number or a list of whole numbers"),
        ({"table": [1]}, "given.table=[1]: must be a mapping {name: value, ...}"),
        ({"part": 3}, "given.part=3: must be an object: a choice of a group, or a mapping with _target_ or null"),
        ({"parts": part()}, "given.parts={_target_:...}: must be a list of objects"),
        ({"part": part(depth="x")}, "given.part.depth=x: must be a whole number"),
        ({"parts": [part(), part(depth="x")]}, "given.parts[1].depth=x: must be a whole number"),
        ({"cuont": 3}, "given.cuont: Whole has no such setting; did you mean count?"),
        ({"xyz": 3}, "given.xyz: Whole has no such setting; choose from count, kind, name, on, part, parts, rate, table, values"),
        ({"count": "???"}, "given.count is missing: give given.count=VALUE on the command line"),
    ],
)
def test_wrong_types_are_errors(values, said):
    """Claim: the sentence has the setting in full, its value as the command line has it, and what it must be."""
    with pytest.raises(SettingError) as raised:
        build(config(**values), "given")
    assert str(raised.value) == said


def test_the_setting_is_where_the_value_stands():
    """Claim: the error of an interpolated value names the setting to change, not where the value is used."""
    top = OmegaConf.merge(config(count="${seed}"), {"seed": "abc"})
    with pytest.raises(SettingError, match=r"^seed=abc: must be a whole number$"):
        check(top.given)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"part": part(depth=0)}, "given.part.depth=0: must be a whole number, at least 1"),
        ({"parts": [part(depth=0), part(depth=2)]}, "given.parts[0].depth=0: must be a whole number, at least 1"),
        ({"rate": 2}, "given.rate=2: must be a number, within 0..1"),
        ({"values": [1, -2]}, "given.values[1]=-2: must be a whole number, at least 0"),
    ],
)
def test_ranges_stay_with_their_classes(values, said):
    """Claim: an error of a class's own check names the setting too."""
    with pytest.raises(SettingError) as raised:
        build(config(**values), "given")
    assert str(raised.value) == said


def test_interpolations_outlive_building():
    """Claim: what was built before does not change where an error says a value stands."""
    described = composed("diffusion.schedule.T=0")
    for _ in range(2):
        with pytest.raises(SettingError) as raised:
            build(described, "objective")
        assert str(raised.value) == "diffusion.schedule.T=0: must be a whole number, at least 1"


def test_errors_after_construction_name_settings():
    """Claim: an error found later names the setting with the refused value, all if none has it, and else class and field."""
    described = config(parts=[part(depth=2), part(depth=5)])
    error = by_setting(described, FieldError(Part(5), "depth", "too deep"))
    assert str(error) == "given.parts[1].depth=5: too deep"
    error = by_setting(described, FieldError(Part(7), "depth", "too deep"))
    assert str(error) == "given.parts[0].depth=7 (or given.parts[1].depth): too deep"
    error = by_setting(config(), FieldError(Part(7), "depth", "too deep"))
    assert str(error) == "Part.depth=7: too deep"


def test_a_library_s_errors_name_class_and_field():
    """Claim: without a config, errors have the class, the field and the value."""
    with pytest.raises(FieldError, match=re.escape("Part.depth=0: must be a whole number, at least 1")):
        Part(0)
    with pytest.raises(FieldError, match=re.escape("Whole.values[1]=-2: must be a whole number, at least 0")):
        Whole(values=[1, -2])
    with pytest.raises(FieldError, match=re.escape("Whole.values=[]: must be a list of at least one value")):
        Whole(values=[])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("seed=abc", "seed=abc: must be a whole number"),
        ("threads=many", "threads=many: must be a whole number or auto"),
        ("workers=1.5", "workers=1.5: must be a whole number or auto"),
        ("samples.n=x", "samples.n=x: must be a whole number"),
        ("samples.trajectory=1", "samples.trajectory=1: must be true or false"),
        ("report.formats=[png,jpg]", "report.formats[1]=jpg: must be png, pdf or svg"),
        ("report.formats=pdf", "report.formats=pdf: must be a list of png, pdf or svg"),
        ("+report.format=pdf", "report.format: no such setting; did you mean formats?"),
        ("store.root=3", "store.root=3: must be text (quote it: 'store.root=\"3\"')"),
    ],
)
def test_settings_of_the_run(setting, said):
    """Claim: settings that belong to no object are checked by the same mechanism."""
    with pytest.raises(SettingError) as raised:
        check_run(composed(setting))
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optimizer.lr=fast", "optimizer.lr=fast: must be a number"),
        ("+optimizer.lrr=1", "optimizer.lrr: AdamW has no such setting; did you mean lr?"),
        ("model.layers_per_block=two", "model.layers_per_block=two: must be a whole number"),
        ("model.block_out_channels=8", "model.block_out_channels=8: must be a list of whole numbers"),
        ("data.n_train=abc", "data.n_train=abc: must be a whole number"),
        ("estimator.draws.n=abc", "estimator.draws.n=abc: must be a whole number or a list of whole numbers"),
        ("execution.pass_memory=lots", "execution.pass_memory=lots: must be a number or auto"),
        ("task.parent=abc", "task.parent=abc: must be a whole number or null"),
    ],
)
def test_shipped_settings_are_checked(setting, said):
    """Claim: dataclasses, functions, optimizers of torch and models of diffusers are checked alike."""
    with pytest.raises(SettingError, match="^" + re.escape(said)):
        check(composed("task=work", setting))


@pytest.mark.parametrize("group", ["estimator", "measurement", "feature", "projection", "curvature", "compression", "model",
                                   "data", "objective", "optimizer", "trainer", "checkpoints", "diffusion", "task"])  # fmt: skip
@pytest.mark.slow
def test_shipped_values_have_their_types(group):
    """Claim: no shipped choice has a value that its class's annotations refuse."""
    for choice in options(group):
        needed = ["data.root=images", "data.size=8"] if group == "data" and choice in FOLDERS else []
        needed += (
            ["data.size=8", "data.autoencoder.path=folder", "data.images.root=images", "data.images.size=8"]
            if choice == "latent"
            else []
        )
        needed += ["+explained.path=folder"] if choice in ("pipeline", "pipeline_flow") else []
        check(composed(f"{group}={choice}", *needed)[group])
