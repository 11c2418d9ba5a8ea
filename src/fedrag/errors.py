"""Every error that fedrag raises on purpose.

A message names the value received, the value wanted and the next step.

```
FedRAGError
├── InputError (ValueError)          a value passed to a call: empty, NaN, wrong width, wrong range
│   ├── DataError                    a row or file of the user's data; names the file and the row
│   ├── ConfigError                  a setting or YAML key that is unknown or impossible
│   └── BudgetError                  a question or answer that does not fit the prompt's token budget
├── StoreError                       a knowledge store's files: truncated, newer format, wrong width
│   └── StaleIndexError              vectors that another document encoder wrote
├── TrainingError (RuntimeError)     training cannot start or go on
│   └── QuorumError                  a federated round has fewer usable replies than the plan asks for
└── MissingExtraError (ImportError)  an optional library is absent; names the extra to install
```

Two more live with what raises them: `RemoteError` of a model behind an address, `Busy` of a system that is served.
"""


class FedRAGError(Exception):
    """Root of the tree: `except FedRAGError` catches all that fedrag raises on purpose."""


class InputError(FedRAGError, ValueError):
    """A value passed to a call is not what the call takes."""


class DataError(InputError):
    """A row or file of the user's data is malformed; the message names the file and the row."""


class ConfigError(InputError):
    """A setting is unknown, misspelt or impossible together with another."""


class BudgetError(InputError):
    """A question or answer does not fit the token budget of the prompt."""


class StoreError(FedRAGError):
    """A knowledge store cannot do what was asked: files truncated or of a newer format, wrong width."""


class StaleIndexError(StoreError):
    """The store's vectors were written by another document encoder than the one that asks."""


class TrainingError(FedRAGError, RuntimeError):
    """Training cannot start or cannot go on."""


class QuorumError(TrainingError):
    """A federated round has fewer sites, or fewer usable replies, than the plan asks for."""


class MissingExtraError(FedRAGError, ImportError):
    """An optional library is not installed; the message names the extra that brings it."""
