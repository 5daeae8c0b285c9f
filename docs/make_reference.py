"""Write docs/reference.md: every key of a config, from its one declaration in the code.

python docs/make_reference.py
"""

from pathlib import Path

import physicsml_ase.models  # noqa: F401  registers the architectures
from physicsml_ase.config import describe
from physicsml_ase.train.settings import RunConfig

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Every key of a config

Written by `make reference` from the declarations in the code; `physicsml-ase describe [SECTION]` prints the same,
and `physicsml-ase describe --schema` a JSON schema for editors. How to write a config: [configs.md](configs.md).

`<name>` stands for a name of yours, `<n>` for a position in a list, `none` for YAML's `null`."""


def reference() -> str:
    """The page: one heading for each section, one line for each key."""
    lines, section = [HEAD], ""
    for row in describe(RunConfig):
        first = row.path.partition(".")[0]
        if first != section:
            section = first
            lines += ["", f"## {section}", ""]
        default = f", default `{row.default}`" if row.default else ""
        lines.append(f"- **`{row.path}`** (`{row.type}`{default}){f': {row.meaning}' if row.meaning else ''}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
