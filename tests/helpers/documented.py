"""The command lines in docstrings, README and docs, and the scripts that they call."""

import importlib
import re
import shlex

NAMES = ("p1_train", "p1_eval", "p1_viz_posembed", "p1_viz_attn", "p1_viz_landscape", "p1_report",
         "p1_export", "p2_train", "p2_eval", "p2_caption_viz", "report_page")
SCRIPTS = {f"{name}.py": importlib.import_module(name) for name in NAMES}
CALL = (r"(?:python|torchrun --nproc-per-node \d+) "
        r"((?:p[12]_\w+\.py|report_page\.py|-m (?:benchmarks|datasets))[^`\n]*)")


def commands(text):
    """The words after `python` of each line, or text in backticks, that calls a script or a module of ours.

    Lines that end with a backslash are joined with the next; what is cut short by `...` does not count, and a
    shell's variable is 0.
    """
    text = re.sub(r"\$\w+", "0", text.replace("\\\n", " "))
    found = re.findall(rf"^\s*!?{CALL}$", text, re.MULTILINE) + re.findall(f"`{CALL}`", text)
    return [shlex.split(line, comments=True) for line in found if "..." not in line]
