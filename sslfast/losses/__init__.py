"""Losses as modules with lightly's arguments and attributes: they hold options and state, and call the ops."""

from sslfast.losses.barlow_twins import BarlowTwinsLoss
from sslfast.losses.memory_bank import MemoryBankModule
from sslfast.losses.nt_xent import NTXentLoss
from sslfast.losses.self_classifier import SelfClassifierLoss
from sslfast.losses.swav import SwaVLoss

__all__ = ["BarlowTwinsLoss", "MemoryBankModule", "NTXentLoss", "SelfClassifierLoss", "SwaVLoss"]
