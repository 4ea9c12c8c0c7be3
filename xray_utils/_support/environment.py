"""Compare the installed packages with requirements.txt, and install what is missing.

The set-up cell runs this file before anything is installed, so it needs Python and pip alone. Run by itself it writes
the address of a copy of the course into all notebooks: `python3 xray_utils/_support/environment.py https://...`.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ImportError:  # packaging is in requirements.txt itself
    from pip._vendor.packaging.requirements import Requirement


LIST = Path(__file__).resolve().parents[2] / "requirements.txt"
KEPT = ("torch", "torchvision")  # builds for this machine, never replaced


def requirements():
    """The requirements of requirements.txt, `{purpose: [Requirement, ...]}`; "# For purpose: ..." begins a block.

    Raises FileNotFoundError when the file is not beside the package.
    """
    if not LIST.is_file():
        raise FileNotFoundError(f"requirements.txt is not in {LIST.parent}. Fetch the whole course, not a part of it.")
    found, purpose = {}, None
    for line in LIST.read_text(encoding="utf-8").splitlines():
        if line.startswith("# For "):
            purpose = line.removeprefix("# For ").split(":")[0]
        elif line and line[0] not in "#-":
            found.setdefault(purpose, []).append(Requirement(line))
    return found


def installed(requirement):
    """The installed version or None, and whether it satisfies the requirement."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None, False
    return version, bool(version) and requirement.specifier.contains(version, prereleases=True)


def report_requirements():
    """Lines that say OK, with the versions, or what to do: Python first, then every requirement."""
    number = ".".join(map(str, sys.version_info[:3]))
    lines = [f"Python {number}: " + ("OK" if sys.version_info >= (3, 10) else "too old. Install 3.10 or newer.")]
    advice = "Run"
    for purpose, needed in requirements().items():
        good = [f"{r.name}=={installed(r)[0]}" for r in needed if installed(r)[1]]
        lines.append(f"For {purpose}: OK: {', '.join(good) or 'none'}")
        for lacking in (r for r in needed if not installed(r)[1]):
            state = f"{installed(lacking)[0]} will not do" if installed(lacking)[0] else "missing"
            lines.append(f'  {lacking.name}: {state}. {advice}: {sys.executable} -m pip install "{lacking}"')
        advice = "No notebook here needs it; to have it, run"  # the first purpose is the notebooks
    return lines


def install_missing(repository):
    """Install what the notebooks lack, and nothing else: an installed package that will do keeps its version.

    repository: the address in the set-up cell. Packages are installed only if the course was fetched from there, into
    `course` beside the notebook. Raises ImportError with the command to run otherwise, and when the installed torch
    will not do (it is never replaced); RuntimeError when pip fails, or when a package in use was replaced: only then
    the kernel must be restarted.
    """
    needed = next(iter(requirements().values()))
    lacking = [r for r in needed if not installed(r)[1]]
    names = ", ".join(map(str, lacking))
    if not lacking:
        return
    if not repository or LIST.parent != Path("course").resolve():
        command = f'"{sys.executable}" -m pip install -r "{LIST}"'
        raise ImportError(
            f"Missing, or of another version: {names}.\nRun in a terminal, then restart this kernel:\n{command}"
        )
    for r in lacking:
        if r.name in KEPT and (version := installed(r)[0]):
            raise ImportError(f"{r} is needed, and {version} is here, which is not replaced. Take a newer runtime.")
    print(f"Installing {names}")
    before = _versions()
    with tempfile.TemporaryDirectory() as folder:
        keep = Path(folder) / "keep.txt"
        keep.write_text("\n".join(f"{r.name}=={installed(r)[0]}" for r in needed if r not in lacking), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "-q", *map(str, lacking), "-c", str(keep)]
        pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        raise RuntimeError(
            f"pip could not install {names}. Is there a network (Kaggle: Settings)?\n{pip.stderr[-2000:]}"
        )
    importlib.invalidate_caches()
    after = _versions()
    replaced = {name for name, version in before.items() if after.get(name, version) != version}
    owners = metadata.packages_distributions()
    in_use = {name for module in set(sys.modules) & set(owners) for name in owners[module]}
    if must := sorted(replaced & in_use):
        raise RuntimeError(
            f"Restart the kernel now (Colab: Runtime, Restart session; Kaggle: Run, Restart), and run this cell again: "
            f"{', '.join(must)} was in use when it was replaced."
        )


def _versions():
    return {one.metadata["Name"]: one.version for one in metadata.distributions()}


def write_address(address):
    """Write the address of a copy of the course into the set-up cell of every notebook, and change nothing else."""
    if not re.fullmatch(r"[\w.:/@~%+-]+", address):
        raise ValueError(f"address: {address!r} is none. Give what git can clone: https://github.com/you/course.git")
    for path in sorted((LIST.parent / "notebooks").glob("*.ipynb")):
        cell = re.compile(rb'(?m)^(\s*"REPOSITORY = \\")[^"\\]*')
        path.write_bytes(cell.sub(lambda old: old[1] + address.encode(), path.read_bytes()))


if __name__ == "__main__":
    write_address(*sys.argv[1:])
