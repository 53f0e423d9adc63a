"""The corruptions of CIFAR-10-C: their names; the generator is in `generate`, which imports torch."""

from rsslcli.core.corruptions.names import CORRUPTIONS, EXTRA, SEVERITIES, STANDARD

__all__ = ["CORRUPTIONS", "EXTRA", "SEVERITIES", "STANDARD"]
