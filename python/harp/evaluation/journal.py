"""The durable record of an evaluation: one SQLite file that has each finished example exactly once.

Once add() has returned, the example survives kill -9 and power loss. The journal mode is TRUNCATE with synchronous=FULL, not
a write-ahead log, so that all finished examples are in this one file, which can be copied and can be on a network drive.
"""

import contextlib
import json
import sqlite3
from dataclasses import astuple, dataclass
from pathlib import Path

ENTROPY_BINS = 64
ENTROPY_BIN_BITS = 0.25  # width of a bin; the first begins at 0, the last also counts everything above

FORMAT = 1
APPLICATION = 0x48415250  # "HARP", in the file's header: distinguishes a journal from other SQLite files
BUSY_SECONDS = 60  # readers and the writer may have to wait for each other's query or commit

ADVICE = {  # keyed by SQLite's message, since Python 3.10 does not give the error code
    "is full": "free space, then run again; what was finished is kept",
    "disk I/O error": "free space or mend the disk, then run again; what was finished is kept",
    "not a database": "move the file away, or use another directory",
    "malformed": "move the file away, or use another directory",
    "unable to open": "make it writable, or use another directory",
    "readonly": "make it writable, or use another directory",
    "locked": "wait until the other process is done, then run again",
}

SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE cell (
    number INTEGER PRIMARY KEY,
    model TEXT NOT NULL, task TEXT NOT NULL, method TEXT NOT NULL, seed INTEGER NOT NULL,
    config TEXT NOT NULL,
    UNIQUE (model, task, method, seed)
);
CREATE TABLE example (
    cell INTEGER NOT NULL REFERENCES cell (number),
    id TEXT NOT NULL,
    metrics TEXT NOT NULL, answer TEXT NOT NULL, target TEXT NOT NULL,
    n_tokens INTEGER NOT NULL, seconds REAL NOT NULL, steps INTEGER NOT NULL, hesitations INTEGER NOT NULL,
    entropies TEXT NOT NULL,
    PRIMARY KEY (cell, id)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {FORMAT};
COMMIT;
"""


class JournalError(Exception):
    """The journal cannot be used as asked. The message names the file and what to do. Nothing was changed."""


@dataclass(frozen=True)
class Cell:
    """Identity of one column of results."""

    model: str
    task: str
    method: str
    seed: int


@dataclass
class Example:
    """The record of one finished example."""

    id: str
    metrics: dict[str, float]  # for example {"acc": 1.0}
    answer: str
    target: str
    n_tokens: int  # generated or scored
    seconds: float  # time of the model
    steps: int
    hesitations: int  # steps that were reframed
    entropies: list[int]  # [ENTROPY_BINS], numbers of steps by the entropy of their next-token distribution


class Journal:
    """The journal in `directory`; created if it is missing, unless `read_only`. For one thread; a context manager.

    One process may write; any number may read at the same time. Every method raises JournalError.
    """

    def __init__(self, directory, read_only=False):
        self.path = Path(directory) / "journal.sqlite"
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            opening.callback(self._resources.close)
            if read_only:
                self._check_present()
            else:
                self._claim()
            self._open(read_only)
            opening.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        """Can be called more than once."""
        self._resources.close()

    def begin(self, cell: Cell, config: dict) -> None:
        """Declares a cell and everything that its results depend on (JSON).

        An existing cell must have the same config, but for ``n_examples``: the greatest number that was asked for stands.
        """
        text = json.dumps(config, sort_keys=True)
        with self._errors("begin a cell"):
            found = self._find(cell)
            if found is None:
                self._database.execute("INSERT INTO cell (model, task, method, seed, config) VALUES (?, ?, ?, ?, ?)",
                                       (*astuple(cell), text))
                return
            number, there, now = found[0], json.loads(found[1]), json.loads(text)
            if "n_examples" in there and "n_examples" in now:
                there["n_examples"] = now["n_examples"] = max(there["n_examples"], now["n_examples"])
            differences = _differences(there, now)
            grown = json.dumps(now, sort_keys=True)
            if not differences and grown != found[1]:
                self._database.execute("UPDATE cell SET config = ? WHERE number = ?", (grown, number))
        if differences:
            raise JournalError(f"{self.path}: {_name(cell)} was begun with another configuration ({'; '.join(differences)}): "
                               "run it as it was begun, or use another directory")

    def begin_anew(self, cell: Cell, config: dict) -> None:
        """As begin(), but an existing cell of which nothing is finished takes the new config: it may have been declared with a flag that no
        model could be loaded with."""
        with self._errors("begin a cell"):
            self._database.execute("UPDATE cell SET config = ? WHERE (model, task, method, seed) = (?, ?, ?, ?) AND NOT EXISTS "
                                   "(SELECT 1 FROM example WHERE cell = number)", (json.dumps(config, sort_keys=True), *astuple(cell)))
        self.begin(cell, config)

    def finished(self, cell: Cell) -> set[str]:
        """Ids of the examples that need not be run again."""
        with self._errors("read"):
            number, _ = self._known(cell)
            return {id for id, in self._database.execute("SELECT id FROM example WHERE cell = ?", (number,))}

    def add(self, cell: Cell, example: Example) -> None:
        """Records one finished example; it is durable on return. Raises if the id is there already."""
        if len(example.entropies) != ENTROPY_BINS:
            raise JournalError(f"{self.path}: example {example.id} has {len(example.entropies)} entropy bins: "
                               f"give {ENTROPY_BINS}")
        id, metrics, *plain, entropies = astuple(example)
        with self._errors(f"add example {id}"):
            number, _ = self._known(cell)
            try:
                # A single statement outside a transaction is a transaction itself.
                self._database.execute("INSERT INTO example VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                                       (number, id, json.dumps(metrics), *plain, json.dumps(entropies)))
            except sqlite3.IntegrityError as error:
                problem = "is there already" if id in self.finished(cell) else f"is refused ({error})"
                raise JournalError(f"{self.path}: example {id} of {_name(cell)} {problem}: run only what finished() "
                                   "does not name") from error

    def cells(self) -> list[Cell]:
        with self._errors("read"):
            return [Cell(*row) for row in
                    self._database.execute("SELECT model, task, method, seed FROM cell ORDER BY model, task, method, seed")]

    def config(self, cell: Cell) -> dict:
        with self._errors("read"):
            return json.loads(self._known(cell)[1])

    def examples(self, cell: Cell) -> list[Example]:
        """All finished examples, ordered by id: numbers first, in numerical order, then texts."""
        with self._errors("read"):
            number, _ = self._known(cell)
            rows = self._database.execute("SELECT id, metrics, answer, target, n_tokens, seconds, steps, hesitations, "
                                          "entropies FROM example WHERE cell = ?", (number,)).fetchall()
            examples = [Example(id, json.loads(metrics), *plain, json.loads(entropies)) for id, metrics, *plain, entropies in rows]
        return sorted(examples, key=lambda example: id_order(example.id))

    def _check_present(self):
        if not self.path.is_file():
            raise JournalError(f"{self.path}: there is no journal: give the directory of an evaluation that has been run")

    def _claim(self):
        # SQLite's own locks end with each transaction. A second file, locked while this object lives, keeps other writers out.
        # The operating system drops the lock of a killed process.
        with self._errors("make it"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = self._connect(self.path.with_suffix(".lock"), "rwc", timeout=0)
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise
                raise JournalError(f"{self.path}: another process is writing to it: wait until that one has ended, "
                                   "or use another directory") from error

    def _open(self, read_only):
        with self._errors("open it"):
            # A reader also opens for writing: after kill -9 SQLite must undo the unfinished transaction before anyone can read.
            self._database = self._connect(self.path, "rw" if read_only else "rwc", timeout=BUSY_SECONDS)
            application, version, tables = (self._database.execute(query).fetchone()[0] for query in (
                "PRAGMA application_id", "PRAGMA user_version", "SELECT count(*) FROM sqlite_master"))
            if read_only:
                self._database.execute("PRAGMA query_only = ON")
            elif application == 0 and tables == 0:  # new, or the process was killed before the schema was written
                self._database.executescript(SCHEMA)
                application, version = APPLICATION, FORMAT
            if application != APPLICATION:
                raise JournalError(f"{self.path}: this is not a journal of an evaluation: move the file away, "
                                   "or use another directory")
            if version != FORMAT:
                raise JournalError(f"{self.path}: it has format {version}, and this version of harp reads format {FORMAT}: "
                                   "use the version that wrote it, or another directory")
            self._database.execute("PRAGMA journal_mode = TRUNCATE")
            self._database.execute("PRAGMA synchronous = FULL")

    def _connect(self, path, mode, timeout):
        # isolation_level=None: transactions are begun and ended here, not guessed by the module.
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=timeout, isolation_level=None)
        self._resources.callback(connection.close)
        return connection

    @contextlib.contextmanager
    def _errors(self, doing):
        try:
            yield
        except sqlite3.Error as error:
            raise JournalError(f"{self.path}: cannot {doing}: {error}{_advice(error)}") from error
        except json.JSONDecodeError as error:
            raise JournalError(f"{self.path}: cannot {doing}: a record is damaged: {ADVICE['malformed']}") from error
        except OSError as error:
            raise JournalError(f"{self.path}: cannot {doing}: {error.strerror}: use another directory") from error

    def _find(self, cell):
        return self._database.execute("SELECT number, config FROM cell WHERE (model, task, method, seed) = (?, ?, ?, ?)",
                                      astuple(cell)).fetchone()

    def _known(self, cell):
        found = self._find(cell)
        if found is None:
            raise JournalError(f"{self.path}: {_name(cell)} is not there: begin() it first")
        return found


def id_order(id: str):
    """Sort key of example ids: numbers first, in numerical order, then texts."""
    return (0, int(id), id) if id.isascii() and id.isdecimal() else (1, 0, id)


def _name(cell):
    return f"{cell.model} / {cell.task} / {cell.method} / seed {cell.seed}"


def _advice(error):
    message = str(error)
    return next((f": {advice}" for part, advice in ADVICE.items() if part in message), "")


def _differences(old: dict, new: dict) -> list[str]:
    old, new = _leaves(old), _leaves(new)
    return [f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
            for key in sorted(old | new) if key not in old or key not in new or old[key] != new[key]]


def _leaves(value, prefix=""):
    """Flattens nested dicts, with keys such as options.threshold."""
    leaves = {}
    for key, inner in value.items():
        leaves |= _leaves(inner, f"{prefix}{key}.") if isinstance(inner, dict) else {prefix + key: inner}
    return leaves
