"""What `fleet.toml` may say: its sections, their keys, defaults and the rules between them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

from nfl_core.codec.quantise import MAX_BITS, MAX_MODULUS_BITS, MIN_BITS
from nfl_core.errors import ConfigError, SpecError
from nfl_core.ids import NAME_PATTERN
from nfl_core.levels import Level, NestedSpec, Scope

Name: TypeAlias = Annotated[str, Field(pattern=NAME_PATTERN)]
Port: TypeAlias = Annotated[int, Field(ge=0, le=65535)]  # 0: `nfl cluster init` picks a free one
Seconds: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Host: TypeAlias = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:-]{1,253}$")]

# As measured on the reference model; a fleet whose levels should step at other rates says so in its file.
DEFAULT_LEVELS = (
    Level(name="reflex", params=("private.*",), period=1, scope=Scope.PRIVATE),
    Level(name="skill", params=("middle.*",), period=1, scope=Scope.REGION),
    Level(name="concept", params=("body.*", "head.*"), period=1, scope=Scope.GLOBAL),
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FleetSection(_Section):
    """The fleet itself."""

    name: Name = Field(description="stands in every certificate")


class ModelSection(_Section):
    """The model that the fleet learns."""

    name: Name = Field(default="small-cnn", description="entry point of the group nfl.models")
    num_classes: int = Field(default=10, ge=2, le=100_000)
    input_shape: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = Field(
        default=(1, 28, 28), description="channels, height, width"
    )


class LearningSection(_Section):
    """Learning on the device."""

    batch_size: int = Field(default=16, ge=1)
    epochs_per_update: int = Field(default=3, ge=1, description="passes over the samples in one micro-update")
    refit_steps: int = Field(
        default=20, ge=0, description="least steps of the fast level on cached features after a merge; 0: none"
    )
    refit_passes: float = Field(
        default=0.75,
        ge=0,
        allow_inf_nan=False,
        description="passes over the cached features, where they are more steps",
    )
    learning_rate: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    holdout_fraction: float = Field(default=0.15, gt=0, lt=1)
    replay_bytes: int = Field(
        default=262_144, ge=0, description="kept on a device of samples that its file no longer holds; 0: nothing"
    )
    replay_augment: Literal["none", "shift", "shift-flip"] = Field(
        default="none", description="how remembered images are changed a little; shift-flip mirrors them too"
    )


class PrivacySection(_Section):
    """How contributions are hidden."""

    mode: Literal["sealed"] = Field(
        default="sealed", description="leaf sees masked vectors, keeper seeds, root sums of batches"
    )
    bits: int = Field(default=2, ge=MIN_BITS, le=MAX_BITS, description="of one quantised value")
    n_min: int = Field(default=4, ge=2, description="smallest batch whose sum may be opened")
    batch_size: int = Field(default=5, ge=2, description="contributions that close a batch")
    batch_max: int = Field(default=8, ge=2, description="largest batch")
    max_weight: int = Field(default=1, ge=1, description="largest weight of one contribution")
    window_s: Seconds = Field(default=6.0, description="a batch of n_min closes after this time")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.n_min <= self.batch_size <= self.batch_max:
            raise ValueError(
                f"n_min {self.n_min}, batch_size {self.batch_size}, batch_max {self.batch_max}; expected rising order"
            )
        if self.bits + (self.batch_max * self.max_weight - 1).bit_length() > MAX_MODULUS_BITS:
            raise ValueError(
                f"bits, batch_max and max_weight need more than {MAX_MODULUS_BITS} bits a value; expected smaller ones"
            )
        return self


class RolloutSection(_Section):
    """How a version reaches the devices."""

    waves: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(0.2, 1.0), min_length=1, description="fraction of devices"
    )
    min_soak_s: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    wave_deadline_s: Seconds = 30.0
    max_failure_fraction: Fraction = 0.2
    min_reports: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.waves) != sorted(set(self.waves)) or self.waves[-1] != 1.0:
            raise ValueError(f"waves are {list(self.waves)}; expected rising fractions that end at 1.0")
        return self


class GatesSection(_Section):
    """What a candidate must pass before it becomes a version."""

    max_drop_points: float = Field(
        default=2.0, ge=0, le=100, description="accuracy it may lose against the version before, in points"
    )
    latency_budget_ms: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    max_bundle_bytes: int = Field(default=10_000_000, ge=1)


class RootSection(_Section):
    """The root site."""

    site: Name = "root"
    host: Host = "127.0.0.1"
    enrol_port: Port = 18440
    flare_port: Port = 18441
    admin_port: Port = 18442
    batches_per_version: int = Field(default=4, ge=1)
    max_staleness: int = Field(default=4, ge=0, description="versions a batch may be behind")
    server_learning_rate: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    server_momentum: float = Field(
        default=0.7, ge=0, lt=1, description="of versions; a steady direction is taken up to 1 / (1 - m) times as far"
    )
    robust: Literal["norm-bound", "nnm-trimmed-mean", "dnc", "geometric-median", "shadow-trust", "mean"] = Field(
        default="norm-bound", description="rule that combines batches; mean trusts everybody"
    )
    robust_over: Literal["batch", "device"] = Field(
        default="batch", description="what the rule compares; single devices are not seen in sealed mode"
    )
    learned_scope: bool = Field(
        default=True, description="pool regional levels as far as regions are alike; false: each region for itself"
    )
    max_attacker_fraction: float = Field(
        default=0.1, ge=0, lt=0.5, allow_inf_nan=False, description="of the devices, that the rule has to stand"
    )


class KeeperSection(_Section):
    """The keeper site, run by another operator than the root."""

    site: Name = "keeper"
    n_min: int = Field(default=4, ge=2, description="the keeper's own floor, whatever a policy says")


class LeafSection(_Section):
    """One leaf site."""

    site: Name
    region: Name
    host: Host = "127.0.0.1"
    port: Port = Field(default=0, description="of the gateway for devices")


class EdgeSection(_Section):
    """The agent on a device."""

    poll_s: Seconds = 0.4
    latency_budget_ms: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    probation_inferences: int = Field(default=8, ge=1)
    max_accuracy_drop: Fraction = 0.15
    max_tries: int = Field(default=3, ge=1, description="boots of a new slot before the device falls back")


class FleetConfig(_Section):
    """Everything `fleet.toml` says."""

    fleet: FleetSection
    leaves: tuple[LeafSection, ...] = Field(min_length=1)
    model: ModelSection = ModelSection()
    levels: tuple[Level, ...] = Field(default=DEFAULT_LEVELS, min_length=1)
    learning: LearningSection = LearningSection()
    privacy: PrivacySection = PrivacySection()
    rollout: RolloutSection = RolloutSection()
    gates: GatesSection = GatesSection()
    root: RootSection = RootSection()
    keeper: KeeperSection = KeeperSection()
    edge: EdgeSection = EdgeSection()

    @model_validator(mode="after")
    def _check(self) -> Self:
        sites = [self.root.site, self.keeper.site, *(leaf.site for leaf in self.leaves)]
        if len(set(sites)) != len(sites):
            raise ValueError(f"sites are {', '.join(sites)}; expected unique names")
        root_ports = [
            (self.root.host, port) for port in (self.root.enrol_port, self.root.flare_port, self.root.admin_port)
        ]
        ports = [
            (host, port) for host, port in [*root_ports, *((leaf.host, leaf.port) for leaf in self.leaves)] if port
        ]
        if len(set(ports)) != len(ports):
            doubled = sorted({f"{host}:{port}" for host, port in ports if ports.count((host, port)) > 1})
            raise ValueError(f"{', '.join(doubled)} is given to two services; expected one each")
        if self.keeper.n_min > self.privacy.n_min:
            raise ValueError(
                f"keeper.n_min {self.keeper.n_min} is above privacy.n_min {self.privacy.n_min}; it would refuse batches"
            )
        if self.root.robust_over == "device":
            raise ValueError(
                f"root.robust_over is 'device' in privacy.mode {self.privacy.mode!r}, where nobody sees a device; "
                "expected 'batch'"
            )
        try:
            _ = self.spec
        except SpecError as error:
            raise ValueError(f"levels: {error}") from error
        return self

    @property
    def spec(self) -> NestedSpec:
        """The levels as a spec."""
        return NestedSpec(self.levels)

    def leaf(self, site: str) -> LeafSection:
        """Return the leaf of that site name.

        Raises:
            ConfigError: There is none.
        """
        for leaf in self.leaves:
            if leaf.site == site:
                return leaf
        raise ConfigError(f"no leaf {site!r} in this fleet, it has {', '.join(leaf.site for leaf in self.leaves)}")
