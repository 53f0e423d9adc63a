"""rssl: robust image classifiers through self-supervision tasks whose weights tune themselves."""

__version__ = "0.1.0"
