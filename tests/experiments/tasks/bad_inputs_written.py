"""Bad inputs that no generator finds: spelling, syntax, files, and combinations of settings."""

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.experiments.tasks.bad_inputs import SCORES, SMALL, STORED, BadInput, files
from tests.experiments.tasks.compositions import CONF

TRAIN = (*SMALL, "task=train")
_SMALL_LDS = (
    *SMALL,
    "benchmark.compare=[]",
    "estimator=random",
    "benchmark.queries.validation.n=4",
    "benchmark.queries.generated.n=4",
)
_WITHOUT_SETTINGS = tuple(
    f"~model.{name}"
    for name in (
        "sample_size",
        "in_channels",
        "out_channels",
        "block_out_channels",
        "down_block_types",
        "up_block_types",
        "layers_per_block",
        "attention_head_dim",
        "norm_num_groups",
        "dropout",
    )
)
"""Overrides for a network that has no settings."""
_GROUPS = (*SMALL, "benchmark=groups", "benchmark.compare=[]", "estimator=random", "benchmark.queries.validation.n=4")
_GROUP_SETTINGS = (
    "benchmark.subsets.groups=nowhere.csv",
    "benchmark.subsets.groups=folder",
    "benchmark.subsets.kept=0.99",
    "benchmark.subsets.count=71",
    "benchmark.parts=[lds,luck]",
    "benchmark.most_models=90",
)
_GIVEN = ("data.n_train=24", "data.n_validation=12", "hardware.accelerator=cpu", "execution.device=cpu", "task=attribute")
_TRAJECTORY = (*SCORES, "estimator=tracin", "estimator.draws.n=2", "estimator.checkpoints=2")


@functools.cache
def made() -> Path:
    """A folder with files that are not what they should be."""
    root = Path(files().partition("=")[2])
    np.save(root / "empty.npy", np.zeros((0, 24), bool))
    np.save(root / "none.npy", np.zeros((4, 24), bool))
    np.save(root / "narrow.npy", np.ones((4, 23), bool))
    np.save(root / "floats.npy", np.ones((4, 24)))
    np.save(root / "objects.npy", np.array([{"a": 1}], dtype=object))
    np.save(root / "far.npy", np.full((4, 3), 99))
    (root / "text.npy").write_text("no array")
    (root / "file").write_text("a file, not a folder")
    (root / "images").mkdir()
    (root / "broken_images").mkdir()
    (root / "broken_images" / "a.png").write_bytes(b"no image")
    (root / "pipeline").mkdir()
    (root / "pipeline" / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    return root


def written() -> list[BadInput]:
    """All of them. Those that only give a setting another value begin at the composed config."""
    others = [*_objects(), *_values(), *_files(), *_known_before_training(), *_on_a_finished_store()]
    return [*_spelling(), *_syntax(), *(replace(given, way="config") if _sets(given.argument) else given for given in others)]


def _sets(argument: str) -> bool:
    """Return whether an argument gives one setting another value, without choosing, adding or deleting anything."""
    name = argument.partition("=")[0]
    return re.fullmatch(r"[\w.]+", name) is not None and not (CONF / name).is_dir()


def _spelling() -> Iterator[BadInput]:
    """Misspelled groups, choices and settings."""
    for group, choices in {
        "estimator": ("retrack", "kfacc", "KFAC", "trak2"),
        "data": ("digit", "cifar100", "imagenet"),
        "model": ("unet", "unet_digitss"),
        "benchmark": ("ldss", "none_of_these"),
        "task": ("trian", "evaluation"),
        "queries": ("validaton",),
        "optimizer": ("lion",),
        "trainer": ("fast",),
        "checkpoints": ("stepz",),
        "measurement": ("los",),
        "curvature": ("kfa",),
        "compression": ("int5",),
        "feature": ("l3",),
        "projection": ("normal",),
        "diffusion": ("edn",),
        "objective": ("l2",),
        "tracker": ("mlflow",),
        "experiment": ("retrac/tabel1", "digits_10"),
        "hydra/launcher": ("slrm",),
        "draws@estimator.draws": ("evn",),
        "mode@benchmark.mode": ("togther",),
    }.items():
        for choice in choices:
            yield BadInput(f"{group}={choice}", SMALL, (group, group.partition("@")[0]))
    for name in (
        "estimater=kfac",
        "esitmator=kfac",
        "dta=digits",
        "modle=unet_digits",
        "tsk=train",
        "sed=1",
        "thread=1",
        "worker=2",
        "trainer.stepz=3",
        "trainer.step=3",
        "optimizer.learning_rate=1",
        "model.blocks=3",
        "data.ntrain=24",
        "benchmark.queries.val.n=3",
        "samples.number=3",
        "store.path=x",
        "execution.devices=cpu",
        "hardware.device=1",
        "checkpoints.evry=3",
        "diffusion.schedule.Ts=100",
        "queries.m=3",
        "benchmark.subsets.cnt=3",
        "task.tops=3",
    ):
        key = name.partition("=")[0]
        yield BadInput(name, SMALL, (key, key.rpartition(".")[0]) if key.count(".") > 1 else (key,))
    for name in (
        "+optimizer.foo=1",
        "+model.foo=1",
        "+data.foo=1",
        "+trainer.foo=1",
        "+estimator.foo=1",
        "+benchmark.foo=1",
        "+execution.foo=1",
        "+hardware.foo=1",
        "+task.foo=1",
        "+queries.foo=1",
        "+samples.foo=1",
        "+store.foo=1",
        "+diffusion.sampler.foo=1",
        "+diffusion.process.foo=1",
        "+measurement.foo=1",
        "+curvature.foo=1",
        "+benchmark.subsets.foo=1",
        "+benchmark.mode.foo=1",
        "+foo=1",
        "+foo.bar=1",
        "+optimizer={foo: 1}",
        "+optimizer.lrr=1",
        "++optimizer.foo=1",
        "++trainer.foo.bar=1",
        "+checkpoints.foo=1",
        "+tracker.foo=1",
        "+objective.foo=1",
        "+compression.foo=1",
        "+diffusion.foo=1",
    ):
        key = name.lstrip("+").partition("=")[0]
        others = {"optimizer": ("optimizer.foo",), "trainer.foo.bar": ("trainer.foo",), "foo.bar": ("foo:",)}
        yield BadInput(name, SMALL, (key, *others.get(key, ())))


def _syntax() -> Iterator[BadInput]:
    """What Hydra or OmegaConf cannot read or resolve."""
    for argument, names in {
        "trainer.steps=[1": ("trainer.steps",),
        "trainer.steps=1,2": ("trainer.steps",),
        "trainer.steps": ("trainer.steps",),
        "seed=1,2": ("seed",),
        "estimator=kfac,trak": ("estimator",),
        "=3": ("=3",),
        "a b=3": ("a b",),
        "trainer..steps=3": ("trainer..steps",),
        "trainer.steps={": ("trainer.steps",),
        "store.root='x": ("store.root",),
        "optimizer.lr=${nowhere}": ("optimizer.lr",),
        "optimizer.lr=${nowhere.at_all}": ("optimizer.lr",),
        "optimizer.lr=${oc.env:NOT_A_VARIABLE_XYZ}": ("optimizer.lr",),
        "optimizer.lr=${no_resolver:1}": ("optimizer.lr",),
        "optimizer.lr=${optimizer.lr}": ("optimizer.lr",),
        "optimizer.lr=${": ("optimizer.lr",),
        "data.n_train=${data.n_validation.x}": ("data.n_train",),
        "seed=???": ("seed",),
        "optimizer.lr=???": ("optimizer.lr",),
        "data.n_train=???": ("data.n_train",),
        "estimator.draws.n=???": ("estimator.draws.n",),
        "store.root=???": ("store.root",),
        "~trainer.steps": ("trainer.steps", "steps"),
        "~optimizer.foo": ("optimizer.foo",),
        "~data": ("data",),
        "~model": ("model",),
        "~estimator": ("estimator",),
        "~optimizer": ("optimizer",),
        "~trainer": ("trainer",),
        "~task": ("task",),
        "~benchmark": ("benchmark",),
        "~execution": ("execution",),
        "~samples": ("samples",),
        "~store": ("store",),
        "~seed": ("seed",),
        "~store.root": ("store.root",),
        "~diffusion.process": ("diffusion.process",),
        "~model._target_": ("model",),
        "~foo": ("foo",),
        "--config-name=absent": ("absent",),
    }.items():
        yield BadInput(argument, SMALL, names)


def _objects() -> Iterator[BadInput]:
    """Targets that do not exist or are something else, and values in place of objects."""
    groups = (
        "data",
        "model",
        "optimizer",
        "trainer",
        "checkpoints",
        "hardware",
        "execution",
        "objective",
        "diffusion.process",
        "diffusion.sampler",
        "diffusion.schedule",
        "estimator",
        "measurement",
        "curvature",
        "queries",
        "task",
        "tracker",
    )
    for group in groups:
        for target in (
            "absent.module.Thing",
            "attribution.absent",
            "torch.nn.Lineer",
            "3",
            "null",
            "''",
            "[]",
            "torch.pi",
            "json.dumps",
            "attribution.measurements.Loss",
        ):
            if not (target.endswith("Loss") and group in ("objective", "measurement")):
                yield BadInput(f"{group}._target_={target}", SCORES, (group,))
    for group in ("data", "model", "optimizer", "trainer", "estimator", "queries", "task", "tracker", "execution", "diffusion"):
        for value in ("null", "3", "[]"):
            yield BadInput(f"{group}={value}", SCORES, (group,))
    for target in ("torch.nn.Identity", "torch.optim.Adam", "torch.nn.Linear", "builtins.dict", "torch.zeros"):
        yield BadInput(f"model._target_={target}", TRAIN, ("model", "model._target_"))
    yield BadInput("optimizer._partial_=false", TRAIN, ("optimizer",))
    yield BadInput("model._partial_=false", TRAIN, ("model",))


def _values() -> Iterator[BadInput]:
    """Single values that types and ranges of one setting do not show."""
    for argument, rest, names in (
        ("seed=abc", TRAIN, ("seed",)),
        ("seed=1.5", TRAIN, ("seed",)),
        ("seed=-1", TRAIN, ("seed",)),
        ("seed=99999999999999999999", TRAIN, ("seed",)),
        ("workers=abc", SMALL, ("workers",)),
        ("workers=100", SMALL, ("workers",)),
        ("workers=100000", SMALL, ("workers",)),
        ("workers=0", TRAIN, ("workers",)),
        ("threads=0", TRAIN, ("threads",)),
        ("threads=1000000", TRAIN, ("threads",)),
        ("samples.n=0", TRAIN, ("samples.n",)),
        ("samples.seed=abc", TRAIN, ("samples.seed",)),
        ("store.root=''", TRAIN, ("store.root",)),
        ("store.root=null", TRAIN, ("store.root",)),
        ("execution.device=foo", SCORES, ("execution.device",)),
        ("execution.device=cuda:99", SCORES, ("execution.device",)),
        ("execution.device=meta", SCORES, ("execution.device",)),
        ("hardware.devices=0", TRAIN, ("hardware.devices",)),
        ("hardware.devices=-3", TRAIN, ("hardware.devices",)),
        ("hardware.devices=none", TRAIN, ("hardware.devices",)),
        ("hardware.devices=64", TRAIN, ("hardware", "devices")),
        ("hardware.accelerator=cuda", TRAIN, ("hardware.accelerator",)),
        ("hardware.accelerator=foo", TRAIN, ("hardware.accelerator",)),
        ("hardware.strategy=deepspeed", (*TRAIN, "hardware.devices=2"), ("hardware.strategy",)),
        ("hardware.strategy=nonsense", TRAIN, ("hardware.strategy",)),
        ("hardware.num_nodes=0", TRAIN, ("hardware.num_nodes",)),
        ("trainer.precision=float32", TRAIN, ("trainer.precision",)),
        ("trainer.precision=32", TRAIN, ("trainer.precision",)),
        ("trainer.lr_schedule=cos", TRAIN, ("trainer.lr_schedule",)),
        ("trainer.warmup=2", TRAIN, ("trainer.warmup",)),
        ("trainer.ema=1", TRAIN, ("trainer.ema",)),
        ("trainer.ema=0", TRAIN, ("trainer.ema",)),
        ("trainer.clip=0", TRAIN, ("trainer.clip",)),
        ("optimizer.lr=null", TRAIN, ("optimizer.lr",)),
        ("optimizer.lr=-1", TRAIN, ("optimizer",)),
        ("optimizer.lr=0", TRAIN, ("optimizer",)),
        ("optimizer.lr=fast", TRAIN, ("optimizer.lr",)),
        ("+optimizer.betas=[0.9]", TRAIN, ("optimizer",)),
        ("+optimizer.betas=[2,3]", TRAIN, ("optimizer",)),
        ("queries.n=5000", SCORES, ("queries.n",)),
        ("queries.index=5", (*SCORES, "queries=train"), ("queries.index",)),
        ("queries.index=[]", (*SCORES, "queries=train"), ("queries.index",)),
        ("queries.index=[99999]", (*SCORES, "queries=train"), ("queries.index",)),
        ("queries.index=[a]", (*SCORES, "queries=train"), ("queries.index",)),
        ("data.n_train=5000", TRAIN, ("data.n_train",)),
        ("data.n_train=1e3", TRAIN, ("data.n_train",)),
        ("data.size=16", TRAIN, ("data.size",)),
        ("data.channels=3", TRAIN, ("data.channels",)),
        ("benchmark.compare=trak", SMALL, ("benchmark.compare",)),
        ("benchmark.compare=[trakk]", SMALL, ("benchmark.compare", "estimator")),
        ("explained=pipeline", _GIVEN, ("explained.path",)),
        ("explained=checkpoint", SCORES, ("explained.path",)),
        ("explained.path=nowhere", (*_GIVEN, "explained=pipeline"), ("explained.path=nowhere",)),
        ("explained.path=nowhere", (*SCORES, "explained=checkpoint"), ("explained.path=nowhere",)),
        ("explained=checkpoints", SCORES, ("explained.paths",)),
        ("explained.path=nowhere", (*SCORES, "explained=recorded"), ("explained.path=nowhere",)),
        ("estimator.of=[trakk,nda]", (*SMALL, "estimator=rank_average"), ("estimator.of",)),
        ("estimator.of=[nda,rank_average]", (*SCORES, "estimator=rank_average"), ("estimator.of",)),
        ("estimator.of=[journey_trak,nda]", (*SCORES, "estimator=rank_average"), ("estimator.of", "queries")),
        ("estimator.models=2", (*SCORES, "estimator=raw_cos"), ("estimator.models",)),
        ("+estimator.models=2", (*SCORES, "estimator=raw_cos"), ("estimator.models",)),
        ("benchmark.compare=[3]", SMALL, ("benchmark.compare",)),
        ("benchmark.compare=[tracin]", _SMALL_LDS, ("benchmark.compare=[tracin]",)),
        ("benchmark.subsets.count=1", _SMALL_LDS, ("benchmark.subsets",)),
        ("benchmark.subsets.fraction=1.5", _SMALL_LDS, ("benchmark.subsets",)),
        ("benchmark.subsets.fraction=0.001", _SMALL_LDS, ("benchmark.subsets",)),
        ("benchmark.subsets.weight=1", _SMALL_LDS, ("benchmark.subsets",)),
        ("benchmark.queries={}", SMALL, ("benchmark.queries",)),
        ("~benchmark.queries", SMALL, ("benchmark.queries", "queries")),
        ("benchmark.queries=3", SMALL, ("benchmark.queries",)),
        ("diffusion.schedule.beta_start=0.5", TRAIN, ("diffusion.schedule",)),
        ("diffusion.schedule.beta_end=2", TRAIN, ("diffusion.schedule",)),
        ("diffusion.schedule.kind=squared", TRAIN, ("diffusion.schedule.kind",)),
        ("diffusion.schedule.trained_betas=[0.1]", TRAIN, ("diffusion.schedule.T", "trained_betas")),
        ("diffusion.schedule.trained_betas=[0.1,2]", (*TRAIN, "diffusion.schedule.T=2"), ("diffusion.schedule.trained_betas",)),
        ("diffusion.schedule.rescale_zero_terminal_snr=true", TRAIN, ("diffusion.process.prediction", "v or sample")),
        ("diffusion.process.prediction=v_prediction", TRAIN, ("diffusion.process.prediction",)),
        ("diffusion.process.weighting=snr", TRAIN, ("diffusion.process.weighting",)),
        ("diffusion.process.snr_gamma=0", TRAIN, ("diffusion.process.snr_gamma",)),
        ("diffusion.sampler.timestep_spacing=linspace", TRAIN, ("diffusion.sampler.timestep_spacing",)),
        (
            "diffusion.sampler._target_=attribution.diffusion.euler_samplers.EDMEulerSampler",
            (*TRAIN, "diffusion=rectified_flow"),
            ("diffusion", "RectifiedFlow"),
        ),
        ("diffusion.process.time=cosine", (*TRAIN, "diffusion=rectified_flow"), ("diffusion.process.time",)),
        ("diffusion.sampler.sigma_min=100", (*TRAIN, "diffusion=edm"), ("diffusion.sampler.sigma_min",)),
        *((f"measurement={name}", (*SCORES, "diffusion=edm"), ("diffusion.process", "DDPM")) for name in ("elbo", "trajectory")),
        ("diffusion=rectified_flow", (*SMALL, "task=loss_weights"), ("task=loss_weights", "DDPM")),
        ("diffusion.sampler.steps=2000", TRAIN, ("diffusion.sampler.steps",)),
        ("diffusion.sampler.eta=2", TRAIN, ("diffusion.sampler.eta",)),
        ("measurement.t=0", (*SCORES, "measurement=loss_at_t"), ("measurement.t",)),
        ("measurement.t=[1,2000]", (*SCORES, "measurement=loss_at_t"), ("measurement.t",)),
        ("measurement=trajectory", SCORES, ("diffusion.sampler", "queries")),
        ("task.action=remove", (*SMALL, "task=store"), ("task.action",)),
        ("task.node=zzz", (*SMALL, "task=store", "task.action=explain"), ("task.node", "zzz", "store")),
        ("task.older_than_days=-1", (*SMALL, "task=store", "task.action=prune"), ("task.older_than_days",)),
        ("task.action=prune", (*SMALL, "task=store"), ("task",)),
        ("task.processes=0", (*SMALL, "task=store", "task.action=check"), ("task.processes",)),
        ("task.self_influence=true", (*SCORES, "estimator=raw_cos"), ("task.self_influence",)),
        ("task.groups=nowhere.csv", SCORES, ("task.groups",)),
        ("task.groups=folder", SCORES, ("task.groups",)),
        ("task.distance=0", (*SCORES, "task.groups=duplicates"), ("task.distance",)),
        *((setting, _GROUPS, (setting.partition("=")[0],)) for setting in _GROUP_SETTINGS),
        ("task.top=0", SCORES, ("task.top",)),
        ("tracker.mode=sometimes", (*TRAIN, "tracker=wandb"), ("tracker.mode",)),
    ):
        yield BadInput(argument, rest, names)


def _files() -> Iterator[BadInput]:
    """Files that are missing, damaged or folders, and folders that are files."""
    root = made()
    published = (*_SMALL_LDS, "subsets@benchmark.subsets=published")
    for name in ("empty", "none", "narrow", "floats", "objects", "far", "text", "absent"):
        yield BadInput(f"benchmark.subsets.path={root}/{name}.npy", published, ("benchmark.subsets.path",))
    yield BadInput(f"benchmark.subsets.path={root}", published, ("benchmark.subsets.path",))
    yield BadInput("benchmark.subsets.count=3", published, ("benchmark.subsets.path",))
    folder = (*SCORES[:-1], "queries=folder")
    for name in ("absent", "file", "images", "broken_images"):
        yield BadInput(f"queries.path={root}/{name}", folder, ("queries.path", f"{root}/{name}"))
    yield BadInput("queries=folder", SCORES[:-1], ("queries.path",))
    yield BadInput(f"store.root={root}/file", TRAIN, ("store.root", "store", str(root)))
    yield BadInput(f"store.root={root}/file/below", TRAIN, ("store.root", "store", str(root)))
    for data in ("cifar10", "mnist", "cifar_mnist"):
        for name in ("absent", "file", "images"):
            base = tuple(argument for argument in TRAIN if not argument.startswith(("data.", "model.")))
            yield BadInput(f"data.root={root}/{name}", (*base, f"data={data}", "model=unet_small"), ("data.root",))
    yield BadInput(f"benchmark.pretrained={root}/pipeline", _bias(), ("benchmark.pretrained",))
    yield BadInput("benchmark.pretrained=''", _bias(), ("benchmark.pretrained",))


def _bias() -> tuple[str, ...]:
    pools = ("benchmark.queries.validation.n=4", "benchmark.queries.generated.n=4")
    small = ("benchmark.examples=20", "benchmark.correlated=10", "benchmark.k=5", "benchmark.compare=[]")
    return (*SMALL, "benchmark=timestep_bias", *_TRAJECTORY[-3:], *pools, *small)


def _known_before_training() -> Iterator[BadInput]:
    """What would fail after training."""
    networks = "tests.experiments.tasks.bad_networks"
    own = tuple(argument for argument in TRAIN if not argument.startswith("model."))
    normalized = (*_WITHOUT_SETTINGS, f"model._target_={networks}.Normalized")
    for argument, rest, names in (
        ("model.out_channels=3", TRAIN, ("model",)),
        ("model.in_channels=3", TRAIN, ("model",)),
        ("model.norm_num_groups=3", TRAIN, ("model",)),
        ("model.norm_num_groups=0", TRAIN, ("model",)),
        ("task.steps=1", (*TRAIN[:-1], "task=speed"), ("task.steps",)),
        ("model.block_out_channels=[8]", TRAIN, ("model",)),
        ("model.down_block_types=[DownBlock2D,NoBlock]", TRAIN, ("model",)),
        ("model.block_out_channels=[8,8,8,8,8,8]", TRAIN, ("model",)),
        ("checkpoints.every=0", TRAIN, ("checkpoints.every",)),
        ("checkpoints.steps=[7]", (*TRAIN[:6], "checkpoints=at", "task=train"), ("checkpoints.steps",)),
        ("checkpoints.count=9", (*TRAIN[:6], "checkpoints=steady", "checkpoints.every=3", "task=train"), ("checkpoints.count",)),
        ("estimator.checkpoints=9", _TRAJECTORY, ("estimator.checkpoints",)),
        ("estimator.checkpoints=0", _TRAJECTORY, ("estimator.checkpoints",)),
        ("estimator.checkpoints=-1", _TRAJECTORY, ("estimator.checkpoints",)),
        ("estimator.checkpoints=[]", _TRAJECTORY, ("estimator.checkpoints",)),
        ("estimator.checkpoints=[4]", _TRAJECTORY, ("estimator.checkpoints",)),
        ("estimator.checkpoints=most", _TRAJECTORY, ("estimator.checkpoints",)),
        ("estimator.checkpoints=2.5", _TRAJECTORY, ("estimator.checkpoints",)),
        ("estimator.checkpoints=9", (*SCORES, "estimator=tracincp"), ("estimator.checkpoints",)),
        ("checkpoints.every=1", (*_TRAJECTORY, "estimator.checkpoints=all"), ("estimator.checkpoints",)),
        ("estimator.draws.n=2000", _TRAJECTORY, ("estimator.draws.n",)),
        ("estimator.draws.bins=2000", _TRAJECTORY, ("estimator.draws.bins",)),
        ("estimator.draws.n=[2,3]", _TRAJECTORY, ("estimator.draws.n",)),
        ("estimator.draws.timesteps=[0]", (*SCORES, "draws@estimator.draws=fixed"), ("estimator.draws",)),
        ("benchmark.draws.n=2000", (*_SMALL_LDS, "draws@benchmark.draws=even"), ("benchmark.draws.n",)),
        ("curvature.draws.n=[2,3]", SCORES, ("curvature.draws",)),
        ("estimator.damping=[]", SCORES, ("estimator.damping",)),
        ("estimator.damping=-1", SCORES, ("estimator.damping",)),
        ("estimator.damping=[1e-8,abc]", SCORES, ("estimator.damping",)),
        ("task.check_layers=true", (*own, *normalized), ("model",)),
        ("estimator=kfac", (*own[:-1], "task=attribute", "queries.n=2", *normalized), ("norm.weight",)),
        (
            "estimator=tracin",
            (*own[:-1], "task=attribute", "queries.n=2", *normalized, "estimator.checkpoints=2"),
            ("norm.weight",),
        ),
        ("model=dit_digits", own, ("model",)),
        ("model=unet_digits_embeddings", own, ("model",)),
        ("model=pixart_digits", own, ("encoder_hidden_states",)),
        ("condition=labels", own, ("model",)),
        ("model=sd3_digits", own, ("model",)),
        ("condition=embeddings", own, ("condition.path",)),
        ("condition.path=nowhere.npy", (*own, "condition=embeddings", "condition.size=4"), ("condition.path",)),
        ("condition.dropout=0.1", own, ("condition.dropout",)),
        ("objective.condition_dropout=0.1", own, ("objective.condition_dropout",)),
        ("condition.classes=5", (*own, "condition=labels", "model=dit_digits"), ("condition.classes",)),
        ("model.num_embeds_ada_norm=4", (*own, "condition=labels", "model=dit_digits"), ("model",)),
        ("diffusion.sampler.guidance=2", own, ("diffusion.sampler.guidance",)),
        (
            "diffusion.sampler.guidance=3",
            (*own, "condition=labels", "condition.dropout=0", "model=dit_digits"),
            ("diffusion.sampler.guidance",),
        ),
    ):
        yield BadInput(argument, rest, names)
    for network in (
        "ReturnsTuple",
        "ReturnsDict",
        "ReturnsNone",
        "DropsChannel",
        "Mixing",
        "Noisy",
        "Frozen",
        "Detached",
        "Half",
        "FailsToConstruct",
        "FixedSize",
        "NotANetwork",
    ):
        yield BadInput(f"model._target_={networks}.{network}", (*own, *_WITHOUT_SETTINGS), ("model",))


def _on_a_finished_store() -> Iterator[BadInput]:
    """The same where nothing is left to compute."""
    for argument in (
        "execution.device=foo",
        "execution.batch_size=0",
        "workers=abc",
        "threads=0",
        "samples.n=0",
        "samples.seed=abc",
        "hardware.devices=0",
        "hardware.interval=0",
        "execution.shard=1.5",
        "optimizer.lr=null",
        "task.top=0",
    ):
        yield BadInput(argument, STORED, (argument.partition("=")[0],), stored=True)
