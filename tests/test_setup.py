"""The first cells of a notebook, wherever it is opened: what they fetch, install, and say; images chosen once for all.

`XRAY_SLOW=1 pytest tests/test_setup.py -k colab` also makes a virtual environment like Colab's and opens a notebook
alone in an empty folder (six minutes on a busy machine; needs the package index).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import types
import venv
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from test_arguments import make_images
from test_readme import blocks

import xray_utils as xu
from xray_utils._support import datasets, environment, paths
from xray_utils._support import device as device_module

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def first_cells(path):
    """The imports and the set-up cell of a notebook."""
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"][:2]


def git(*arguments, cwd):
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *who, *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


# ---------------------------------------------------------------- the set-up cell


def test_the_cell_is_the_same_everywhere_and_short():
    cells = {tuple(first_cells(path)) for path in NOTEBOOKS}
    assert len(cells) == 1
    assert all(len(source.splitlines()) <= 10 for source in cells.pop())


def test_colab_folds_the_solutions():
    """There the code of a cell in form view is hidden behind "Show code" (googlecolab/colabtools, issue 2154)."""
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            solution = "solution" in cell.metadata.get("tags", [])
            assert cell.metadata.get("cellView") == ("form" if solution else None), path.name


@pytest.fixture
def course(tmp_path):
    """A git repository with the real list and installer, and a package that only says that it is imported."""
    folder = tmp_path / "my repository"
    (folder / "xray_utils").mkdir(parents=True)
    (folder / "xray_utils" / "__init__.py").write_text("print('imported', __file__)")
    for file in ("requirements.txt", "xray_utils/_support/environment.py"):
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / file, folder / file)
    git("init", "-q", ".", cwd=folder)
    git("add", ".", cwd=folder)
    git("commit", "-q", "-m", "course", cwd=folder)
    return folder


# This course is taken off the path, wherever it is installed; packages in LACKING are as if they were not there.
APART = """
import sys
from importlib import metadata
from pathlib import Path
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path = [folder for folder in sys.path if not (Path(folder) / "xray_utils").is_dir()]
real = metadata.version
def version(name):
    if name in LACKING:
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
"""


def run_cells(folder, repository, lacking=(), then="", variables=None):
    imports, setup = first_cells(NOTEBOOKS[0])
    setup = re.sub(r'^REPOSITORY = "[^"]*"', f"REPOSITORY = {str(repository)!r}", setup)
    code = "\n".join([APART.replace("LACKING", repr(list(lacking))), imports, setup, then])
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | (variables or {})
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=variables)


@needs_git
def test_a_notebook_alone_fetches_the_course_once(course, tmp_path):
    alone = tmp_path / "an empty folder"
    alone.mkdir()
    first = run_cells(alone, course)
    assert first.returncode == 0, first.stderr
    assert first.stdout.split() == ["imported", *str(alone / "course/xray_utils/__init__.py").split()], "and no more"
    course.rename(tmp_path / "gone")
    again = run_cells(alone, course)
    assert (again.returncode, again.stdout) == (0, first.stdout), again.stderr


@needs_git
def test_what_cannot_be_fetched_leaves_nothing_and_says_what_to_do(course, tmp_path):
    """A wrong address; a repository of something else; what a broken-off fetch left; a folder of that name."""
    other = tmp_path / "other"
    other.mkdir()
    git("init", "-q", ".", cwd=other)
    git("commit", "-q", "-m", "nothing", "--allow-empty", cwd=other)
    cases = [(tmp_path / "no such repository", None), (other, None)]
    cases += [(course, "course/.git/HEAD"), (course, "course/xray_utils/images_module.py")]
    for number, (address, left) in enumerate(cases):
        alone = tmp_path / f"alone {number}"
        alone.mkdir()
        if left:
            (alone / left).parent.mkdir(parents=True)
            (alone / left).touch()
        result = run_cells(alone, address)
        remedies = f"AssertionError: Correct {address}, turn Internet on (Kaggle), or delete the folder course."
        assert result.stderr.splitlines()[-1] == remedies and "imported" not in result.stdout
        assert [path.name for path in alone.iterdir()] == (["course"] if number else [])
    (tmp_path / "empty" / "course").mkdir(parents=True)
    assert run_cells(tmp_path / "empty", course).stdout.startswith("imported"), "an empty folder is filled"


@needs_git
def test_where_the_course_was_fetched_what_is_missing_is_installed(course, tmp_path):
    """By a `pip` that only writes down what it is asked."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "pip.py").write_text("import sys; open('asked', 'w').write(' '.join(sys.argv[1:]))")
    result = run_cells(tmp_path, course, ["accelerate"], variables={"PYTHONPATH": str(tmp_path / "stub")})
    assert result.returncode == 0 and "imported" in result.stdout, result.stderr
    assert re.fullmatch(r"install -q accelerate>=\S+ -c \S+", (tmp_path / "asked").read_text())


@needs_git
def test_one_command_writes_the_address_into_all_notebooks(tmp_path):
    """The command of docs/colab.md."""
    (command,) = [block for block in blocks("docs/colab.md", "bash") if "environment.py" in block]
    for file in (
        "requirements.txt",
        "xray_utils/_support/environment.py",
        *[f"notebooks/{path.name}" for path in NOTEBOOKS],
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
        shutil.copyfile(ROOT / file, tmp_path / file)
    words = command.replace("<you>", "me").replace("<course>", "mine").split()
    for _ in range(2):
        subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True)
    for path in NOTEBOOKS:
        written = (tmp_path / "notebooks" / path.name).read_text(encoding="utf-8").splitlines()
        old = path.read_text(encoding="utf-8").splitlines()
        ((before, after),) = [(a, b) for a, b in zip(old, written, strict=True) if a != b]
        assert 'REPOSITORY = \\"' in before and 'REPOSITORY = \\"https://github.com/me/mine.git\\"  #' in after
        nbformat.validate(nbformat.read(tmp_path / "notebooks" / path.name, as_version=4))
    with pytest.raises(ValueError, match="address: 'two words' is none"):
        environment.write_address("two words")


def whole_course(folder):
    """A git repository with all files of this course."""
    for name in git("ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    git("init", "-q", ".", cwd=folder)
    git("add", ".", cwd=folder)
    git("commit", "-q", "-m", "course", cwd=folder)
    return folder


@needs_git
def test_on_kaggle_images_are_read_where_they_lie_and_results_stay_in_the_working_folder(tmp_path, monkeypatch):
    images, working = tmp_path / "input" / "covid-cxr", tmp_path / "working"
    make_images(images)
    working.mkdir()
    monkeypatch.delenv("XRAY_DATA")
    monkeypatch.delenv("XRAY_OUTPUTS")
    folders = [path for path in (images, *images.rglob("*")) if path.is_dir()]
    before = {path: path.stat().st_mtime_ns for path in images.rglob("*")}
    code = f"xu.use_images({str(images)!r})\ndata = xu.load_data(size=32)\nprint(xu.outputs_dir())"
    try:
        for folder in folders:
            folder.chmod(0o555)
        result = run_cells(working, whole_course(tmp_path / "repository"), then=code)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert result.returncode == 0, result.stderr
    assert "18 images: covid 6, normal 6, virus 6" in result.stdout
    assert result.stdout.splitlines()[-1] == str(working / "course" / "outputs")
    assert (working / "course" / "outputs").is_dir() and [path.name for path in working.iterdir()] == ["course"]
    assert {path: path.stat().st_mtime_ns for path in images.rglob("*")} == before


@needs_git
def test_the_course_is_found_from_its_own_folders_without_an_address(course):
    """JupyterLab, VS Code and nbconvert run a notebook in its own folder; others in the folder of the course."""
    (course / "notebooks").mkdir()
    for folder in (course, course / "notebooks"):
        result = run_cells(folder, "")
        assert result.returncode == 0 and result.stdout.startswith(f"imported {course}"), result.stderr
        assert not (folder / "course").exists()


def test_without_an_address_it_is_said_what_to_do(tmp_path):
    assert "Write your copy's address above, or open this notebook in its folder." in run_cells(tmp_path, "").stderr


@needs_git
@pytest.mark.parametrize("address", ["", "https://example.org/the-copy-of-a-class.git"])
def test_on_a_machine_of_ones_own_nothing_is_installed_unasked(course, address):
    result = run_cells(course, address, lacking=["tqdm"])
    assert result.returncode and "imported" not in result.stdout
    assert re.search(r"ImportError: Missing, or of another version: tqdm>=\S+\nRun in a terminal", result.stderr)


# ---------------------------------------------------------------- what is installed, and what is not


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with these versions; `machine.pip` is what pip is asked, `machine.after` what it changes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "course").mkdir()  # fetched
    monkeypatch.setattr(environment, "LIST", (tmp_path / "course" / "requirements.txt").resolve())
    shutil.copyfile(ROOT / "requirements.txt", environment.LIST)
    needed = next(iter(environment.requirements().values()))
    versions = {r.name: re.search(r"[\d.]+", str(r.specifier))[0] for r in needed} | {"unrelated": "1"}
    versions["transformers"], versions["torch"] = "5.0", "2.9.0+cu126"
    here = SimpleNamespace(versions=versions, pip=[], after={}, fails=False)

    def version(name):
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    def run(command, **options):
        keep = Path(command[command.index("-c") + 1]).read_text().splitlines()
        here.pip.append((command[command.index("-q") + 1 : command.index("-c")], keep))
        versions.update(here.after)
        return SimpleNamespace(returncode=int(here.fails), stderr="no index")

    monkeypatch.setattr(environment.metadata, "version", version)
    monkeypatch.setattr(environment, "_versions", lambda: dict(versions))
    monkeypatch.setattr(environment.subprocess, "run", run)
    return here


def test_only_what_is_missing_is_installed_and_the_rest_is_held(machine, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "kagglehub", raising=False)  # another test may have used it
    environment.install_missing("an address")
    assert machine.pip == [] and capsys.readouterr().out == ""
    del machine.versions["accelerate"]
    machine.versions["kagglehub"] = "0.1"
    machine.after = {"accelerate": "1.9", "kagglehub": "1.0"}
    environment.install_missing("an address")
    ((asked, kept),) = machine.pip
    assert [name.split(">=")[0] for name in asked] == ["accelerate", "kagglehub"]
    assert "torch==2.9.0+cu126" in kept and "numpy==1.26" in kept and not any("accelerate" in line for line in kept)
    assert "Installing accelerate>=" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["torch", "torchvision"])
def test_torch_is_never_replaced(machine, name):
    machine.versions[name] = "0.1"
    with pytest.raises(ImportError, match=rf"{name}>=\S+ is needed, and 0.1 is here, which is not replaced"):
        environment.install_missing("an address")
    assert machine.pip == []


def test_a_restart_is_asked_for_only_when_a_package_in_use_was_replaced(machine, monkeypatch):
    owners = {"numpy": ["numpy"], "a_module_that_nobody_loaded": ["unrelated"]}
    monkeypatch.setattr(environment.metadata, "packages_distributions", lambda: owners)
    del machine.versions["accelerate"]
    machine.after = {"accelerate": "1.9", "unrelated": "2"}
    environment.install_missing("an address")
    machine.versions["numpy"], machine.after = "1.0", {"numpy": "2.0"}
    with pytest.raises(RuntimeError, match="Restart the kernel now .* numpy was in use when it was replaced"):
        environment.install_missing("an address")


def test_pip_that_fails_is_quoted(machine):
    del machine.versions["accelerate"]
    machine.fails = True
    with pytest.raises(RuntimeError, match=r"pip could not install accelerate>=.*network[\s\S]*no index"):
        environment.install_missing("an address")


def test_the_installer_needs_python_and_pip_alone():
    pytest.importorskip("pip")
    code = "import sys; sys.modules['packaging'] = None; import runpy; names = runpy.run_path(sys.argv[1])\n"
    code += "print('torch' in sys.modules, 'numpy' in sys.modules, len(names['requirements']()))"
    command = [sys.executable, "-c", code, str(ROOT / "xray_utils" / "_support" / "environment.py")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False False 3"


# ---------------------------------------------------------------- the check


def test_every_requirement_is_ok_or_has_what_to_do(capsys, monkeypatch):
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[0] not in "#-"]
    names = [re.split(r"[<>=]", line)[0] for line in lines]
    found = environment.requirements()
    assert [str(r.name) for block in found.values() for r in block] == names and len(found) == 3
    real = metadata.version

    def version(name):
        if name in ("tqdm", "nbval"):
            raise metadata.PackageNotFoundError(name)
        return {"transformers": "6.1", "scipy": None}.get(name, real(name))

    monkeypatch.setattr(environment.metadata, "version", version)
    report = "\n".join(environment.report_requirements())
    lacking = {"tqdm": "missing", "nbval": "missing", "transformers": "6.1 will not do", "scipy": "missing"}
    for name, line in zip(names, lines, strict=True):
        if name in lacking:
            need = "No notebook here needs it; to have it, run" if name == "nbval" else "Run"
            assert re.search(rf'  {name}: {lacking[name]}. {need}: .* -m pip install "{name}[<>=]', report)
        else:
            assert f"{name}=={real(name)}" in report, f"{line} is not in the report"


def test_the_device_is_said_in_good_grammar(capsys, monkeypatch):
    for threads, words in ((1, "CPU, 1 thread;"), (4, "CPU, 4 threads;")):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        xu.check_environment()
        said = capsys.readouterr().out
        assert f"Device: {words} precision: {device_module.choose_precision()}" in said or torch.cuda.is_available()
        assert said.startswith("Python 3.") and max(map(len, said.splitlines())) <= 96


# ---------------------------------------------------------------- which images


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A repository with a sample and nothing else."""
    make_images(tmp_path / "repository" / "data" / "sample")
    for module in (paths, datasets):
        monkeypatch.setattr(module, "repository_dir", lambda: tmp_path / "repository")
    monkeypatch.delenv("XRAY_DATA")
    return tmp_path / "repository"


def zipped(folder, archive):
    with zipfile.ZipFile(archive, "w") as file:
        for path in folder.rglob("*.*"):
            file.write(path, Path("set") / path.relative_to(folder))
    return archive


def test_a_folder_is_chosen_once_for_all(home, tmp_path, capsys):
    mine = tmp_path / "mÿ own images"
    make_images(mine)
    assert xu.data_dir() == home / "data" / "sample"
    xu.use_images(str(mine))
    assert xu.data_dir() == mine and capsys.readouterr().out == f"The notebooks use {mine}.\n"
    xu.use_images()
    assert xu.data_dir() == mine
    xu.use_images("sample")
    assert xu.data_dir() == home / "data" / "sample"
    assert capsys.readouterr().out.endswith("use data/sample: the bundled sample.\n")
    xu.use_images(mine)
    mine.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match="xu.use_images chose .* which is no folder any more. Call it again"):
        xu.load_data()


def test_an_archive_is_unpacked_once(home, tmp_path, capsys):
    make_images(tmp_path / "set")
    archive = zipped(tmp_path / "set", tmp_path / "my images.zip")
    xu.use_images(archive)
    own = home / "data" / "xray"
    assert xu.data_dir() == own and len(xu.find_images(own)) == 18 and (own / "manifest.csv").is_file()
    (own / "kept").touch()
    xu.use_images(archive)
    assert (own / "kept").is_file() and "The notebooks use data/xray.\n" in capsys.readouterr().out
    other = zipped(tmp_path / "set" / "covid", tmp_path / "other.zip")
    with pytest.raises(FileExistsError, match="already holds other images. Move or delete it"):
        xu.use_images(other)


def test_labels_are_kept_for_all_notebooks(home, tmp_path, capsys):
    make_images(tmp_path / "mine")
    (tmp_path / "mine" / "manifest.csv").unlink()
    (tmp_path / "mine" / "normal").rename(tmp_path / "mine" / "Gesunde")
    xu.use_images(tmp_path / "mine")
    assert 'labels={"Gesunde": "?"}' in (said := capsys.readouterr().out) and "Call xu.use_images again" in said
    with pytest.raises(ValueError, match="Gesunde"):
        xu.find_images(xu.data_dir())
    xu.use_images(tmp_path / "mine", labels={"Gesunde": "normal"})
    for _ in range(2):
        assert set(xu.find_images(xu.data_dir(), labels={}).label) == set(xu.CLASSES)
        xu.use_images(tmp_path / "mine")
    assert capsys.readouterr().out == f"The notebooks use {tmp_path / 'mine'}.\n" * 3
    with pytest.raises(ValueError, match="there is no folder 'nowhere'"):
        xu.use_images(tmp_path / "mine", labels={"nowhere": "normal"})
    assert xu.data_dir() == tmp_path / "mine" and len(xu.load_data(size=8).test)
    archive = zipped(tmp_path / "mine", tmp_path / "mine.zip")
    for labels in (None, {"Gesunde": "normal"}):
        xu.use_images(archive, labels)
    assert len(xu.find_images(xu.data_dir())) == 18
    with pytest.raises(ValueError, match="0.png is one image. Give the folder"):
        xu.use_images(next((tmp_path / "mine" / "covid").glob("*0.png")))


def test_a_set_is_fetched_once_by_its_name(home, tmp_path, monkeypatch):
    make_images(tmp_path / "cache" / "set")
    asked = []
    fetch = SimpleNamespace(dataset_download=lambda name: asked.append(name) or tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "kagglehub", fetch)
    xu.use_images("covid-cxr")
    xu.use_images("covid-cxr")
    assert len(asked) == 1 and xu.data_dir() == home / "data" / "xray" and len(xu.find_images(xu.data_dir())) == 18
    with pytest.raises(FileExistsError):
        xu.use_images("radiography")


def test_on_another_machine_the_images_are_brought_again(home, tmp_path, monkeypatch, capsys):
    """Outputs on a Drive outlive the machine, and with it `data/xray`; an archive on the Drive does, too."""
    make_images(tmp_path / "cache" / "set")
    fetch = SimpleNamespace(dataset_download=lambda name: tmp_path / "cache")
    monkeypatch.setitem(sys.modules, "kagglehub", fetch)
    archive, own = zipped(tmp_path / "cache" / "set", tmp_path / "my images.zip"), home / "data" / "xray"
    for source in ("covid-cxr", archive):
        xu.use_images(source)
        shutil.rmtree(own)
        with pytest.raises(FileNotFoundError, match="no folder any more. Call it again, with nothing in the brackets"):
            xu.data_dir()
        xu.use_images()
        assert xu.data_dir() == own and len(xu.find_images(own)) == 18
        assert f"{own} is gone; its images are fetched again from {source}." in capsys.readouterr().out
        xu.use_images()
        assert capsys.readouterr().out == "The notebooks use data/xray.\n"
        shutil.rmtree(own)
    archive.unlink()
    with pytest.raises(FileNotFoundError, match=r"\(from '.*my images.zip'\), .* Call it again, with your images"):
        xu.use_images()


@pytest.mark.parametrize("end", ["", "\n", "\n\n{}\n"], ids=["one line", "two lines", "saved by hand"])
def test_a_choice_of_an_earlier_version_is_read(home, tmp_path, end):
    make_images(tmp_path / "mine")
    xu.outputs_dir().mkdir(exist_ok=True)
    xu.outputs_dir(paths.CHOICE).write_text(f"{tmp_path / 'mine'}{end}", encoding="utf-8")
    xu.use_images()
    assert xu.data_dir() == tmp_path / "mine"


def test_real_images_are_brought_as_the_readme_says(home, tmp_path, monkeypatch):
    make_images(tmp_path / "my images")
    zipped(tmp_path / "my images", tmp_path / "my images.zip")
    fetch = SimpleNamespace(dataset_download=lambda name: shutil.copytree(tmp_path / "my images", tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "kagglehub", fetch)
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("README.md", "python") if "xu.use_images" in block]
    places = []
    for line in block.replace("/path/to", str(tmp_path)).splitlines():
        shutil.rmtree(home / "data" / "xray", ignore_errors=True)
        exec(line, {"xu": xu})
        places.append(xu.data_dir())
        assert len(xu.find_images(places[-1])) == 18
    assert places == [home / "data" / "xray", tmp_path / "my images", home / "data" / "xray"]


def test_what_cannot_be_read_is_not_chosen(home, tmp_path):
    make_images(tmp_path / "good")
    xu.use_images(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    one_class = zipped(tmp_path / "good" / "covid", tmp_path / "one.zip")
    for source, error in ((tmp_path / "empty", FileNotFoundError), (one_class, (ValueError, FileNotFoundError))):
        with pytest.raises(error):
            xu.use_images(source)
        assert xu.data_dir() == tmp_path / "good" and [p.name for p in (home / "data").iterdir()] == ["sample"]


def test_an_upload_is_asked_for_on_colab_alone(home, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="source: 'upload' works on Colab. Elsewhere drag the .zip file"):
        xu.use_images("upload")
    make_images(tmp_path / "set")
    archive = zipped(tmp_path / "set", tmp_path / "set.zip")
    uploaded = {}
    colab = types.ModuleType("google.colab")
    colab.files = SimpleNamespace(upload=lambda: uploaded)
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    with pytest.raises(ValueError, match="'upload' received 0 files"):
        xu.use_images("upload")
    uploaded[str(archive)] = b""
    xu.use_images("upload")
    assert xu.data_dir() == home / "data" / "xray"


def test_the_variable_goes_before_the_choice_and_says_so(home, tmp_path, monkeypatch):
    make_images(tmp_path / "mine")
    monkeypatch.setenv("XRAY_DATA", str(home / "data" / "sample"))
    with pytest.raises(ValueError, match="would not be used while XRAY_DATA is set. Unset that first."):
        xu.use_images(tmp_path / "mine")
    assert xu.data_dir() == home / "data" / "sample"


# ---------------------------------------------------------------- how long, and on any system


class Slow(torch.nn.Module):
    """A network that takes a known time: each forward pass 0.1 s of a clock that stands still otherwise."""

    now = 0.0
    input_mean = input_std = [0.5] * 3

    def __init__(self):
        super().__init__()
        self.last = torch.nn.Linear(3, 3)
        self.dropout = torch.nn.Dropout()

    def forward(self, images):
        Slow.now += 0.1
        return self.last(self.dropout(images.mean((2, 3))))


def test_the_time_of_training_is_measured_and_said(home, capsys, monkeypatch):
    prepared = xu.prepare(xu.split_images(xu.audit_images(xu.find_images(xu.data_dir()))), size=32)
    monkeypatch.setattr(time, "perf_counter", lambda: Slow.now)
    prepared.is_sample = True
    assert xu.estimate_time(Slow(), prepared, 30, 4) is None and capsys.readouterr().out == ""
    prepared.is_sample = False
    model = Slow()
    before, state = torch.get_rng_state(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    device_module.accelerator_of("bf16")  # of a training before
    seconds = xu.estimate_time(model, prepared, 300, 4, precision="fp32")
    said = capsys.readouterr().out
    assert seconds == pytest.approx(300 * (len(prepared.train) + len(prepared.val)) / 4 * 0.1)
    assert f"takes about {round(seconds / 60)} minutes, measured on one batch." in said
    assert "300 epochs on this CPU" in said
    assert "in fp32" in said and "Colab: Runtime, Change runtime type" in said and "Kaggle: Settings" in said
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    xu.estimate_time(model, prepared, 1, 4)
    assert "Training for 1 epoch on" in capsys.readouterr().out
    monkeypatch.setattr(
        device_module, "Accelerator", lambda **_: SimpleNamespace(device=torch.device("cuda"), num_processes=1)
    )
    assert xu.estimate_time(model, prepared, 1, 4, precision="fp32") is None


# ---------------------------------------------------------------- Colab, simulated

NOT_ON_COLAB = ("accelerate", "kagglehub", "kagglesdk", "papermill", "nbval", "hypothesis", "ruff", "xdist", "xray")


@needs_git
@pytest.mark.skipif(not os.environ.get("XRAY_SLOW"), reason="slow, and needs the package index: set XRAY_SLOW=1")
def test_colab_a_notebook_alone_runs_from_the_first_cell_to_the_last(tmp_path):
    preinstalled, alone = tmp_path / "preinstalled", tmp_path / "content"
    for folder in (preinstalled, alone):
        folder.mkdir()
    for entry in Path(metadata.distribution("torch").locate_file("")).iterdir():
        if not any(name in entry.name.lower() for name in (*NOT_ON_COLAB, "__pycache__", "_virtualenv")):
            (preinstalled / entry.name).symlink_to(entry)
    venv.create(tmp_path / "colab", with_pip=True)
    python = tmp_path / "colab" / "bin" / "python"
    (site,) = (tmp_path / "colab" / "lib").glob("python*/site-packages")
    (site / "preinstalled.pth").write_text(str(preinstalled))
    whole_course(tmp_path / "repository")
    notebook = nbformat.read(ROOT / "notebooks" / "03_baseline_cnn.ipynb", as_version=4)
    setup = next(cell for cell in notebook.cells if cell.source.startswith("REPOSITORY"))
    address = (tmp_path / "repository").as_uri()
    setup.source = re.sub('"[^"]*"', repr(address), setup.source, count=1)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "\noption_epochs = 0"
    nbformat.write(notebook, alone / "alone.ipynb")
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("XRAY", "PYTHONPATH", "VIRTUAL_ENV"))}
    variables |= {"TQDM_DISABLE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [str(python), "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", "alone.ipynb"]
    before = {path.name for path in site.iterdir()}
    for times in (1, 2):
        result = subprocess.run(command, cwd=alone, env=variables, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-3000:]
        page = json.dumps(nbformat.read(alone / "alone.ipynb", as_version=4))
        assert ("Installing accelerate>=" in page) == (times == 1) and "images of the bundled sample" in page
        assert "Restart the kernel" not in page.replace(json.dumps(setup.source), "")
        assert {path.name for path in alone.iterdir()} == {"alone.ipynb", "course"}
    brought = {path.name for path in site.iterdir()} - before
    assert {"accelerate", "kagglehub"} <= brought
    assert not {"torch", "torchvision", "numpy", "pandas", "transformers"} & brought, brought
    assert (alone / "course" / "outputs" / "runs" / "baseline_cnn_grouped_sample" / "metrics.json").is_file()
