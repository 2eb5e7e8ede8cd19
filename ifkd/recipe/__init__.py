# ruff: noqa: F401
# mypy: implicit-reexport
"""Recipe schemas: every option, its meaning and its default. Complete recipes are in configs/."""

from ifkd.recipe.ifkd_options import PRESETS, AttentionOptions, EdeOptions, FdrOptions, HsmOptions, IfkdOptions, Preset
from ifkd.recipe.levels import LEVELS, Family, Level, LevelChoice, select_levels
from ifkd.recipe.method_options import (
    EQUAL_WIDTHS,
    ArsdOptions,
    AttentionTransferOptions,
    CrossKdOptions,
    CwdOptions,
    FgdOptions,
    FitNetOptions,
    FkdOptions,
    FrsOptions,
    InsDistOptions,
    MethodOptions,
    NoDistillationOptions,
    PkdOptions,
)
from ifkd.recipe.recipe import (
    AugmentationOptions,
    CalibrationOptions,
    DataOptions,
    DetectorOptions,
    DistillationOptions,
    ExportOptions,
    Recipe,
)
from ifkd.recipe.screen_options import ScreenOptions
from ifkd.recipe.training_options import BalanceOptions, ScheduleOptions, TrainingOptions
from ifkd.recipe.value_types import Fraction
