from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import llama_index_colqwen
from llama_index_colqwen import MissingDependencyError

ROOT = Path(__file__).parents[1]
NEED_AN_EXTRA = {"ColQwenLangChainRetriever"}
"""Names that load when they are asked for, and are not of those that `import *` loads."""


def test_every_public_name_is_exported_and_nothing_else() -> None:
    for name in llama_index_colqwen.__all__:
        assert getattr(llama_index_colqwen, name) is not None
    public = {name for name in dir(llama_index_colqwen) if not name.startswith("_")}
    modules = {module.name for module in pkgutil.iter_modules(llama_index_colqwen.__path__)}
    assert public - modules - NEED_AN_EXTRA - {"TYPE_CHECKING", "import_module"} == set(llama_index_colqwen.__all__)


def test_type_checkers_see_the_names_that_load_when_asked_for() -> None:
    tree = ast.parse(Path(llama_index_colqwen.__file__).read_text("utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        (str(node.module).removeprefix("llama_index_colqwen."), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    loaded = {(module, name) for module, names in llama_index_colqwen._MODULES.items() for name in names}
    assert seen == loaded
    assert sorted({name for _, name in seen} - NEED_AN_EXTRA) == sorted(llama_index_colqwen.__all__)


def test_a_name_that_is_none_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'ColQwenRetreiver'"):
        llama_index_colqwen.ColQwenRetreiver  # noqa: B018


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("reading", ["PDFPageReader", "MissingTextWarning", "SkippedDocumentWarning"]),
        ("embedders.colqwen", ["ColQwenEmbedder"]),
        ("embedders.remote", ["EndpointEmbedder"]),
        ("store", ["MilvusPageStore", "StoredDocument", "StoredState"]),
        ("serving", ["EndpointHandler"]),
    ],
)
def test_rooms_export_their_main_names(module: str, names: list[str]) -> None:
    room = importlib.import_module(f"llama_index_colqwen.{module}")
    for name in names:
        assert getattr(room, name) is getattr(llama_index_colqwen, name)


COLQWEN = "import sys; sys.argv[1:] = [{!r}]; from llama_index_colqwen.cli import main; main()"


@pytest.mark.slow
def test_starting_takes_hardly_more_than_python_and_typer() -> None:
    def seconds(code: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    codes = {
        "python": "import typing, importlib",
        "package": "import llama_index_colqwen",
        "typer": "import typer",
        "help": COLQWEN.format("--help"),
        "version": COLQWEN.format("--version"),
    }
    # In turn, since other programs slow the machine for moments.
    taken = [{name: seconds(code) for name, code in codes.items()} for _ in range(3)]
    for name, plain, most in (("package", "python", 3), ("help", "typer", 2), ("version", "typer", 2)):
        # measured: 1.0, 1.4, 1.2
        assert statistics.median(one[name] / one[plain] for one in taken) <= most, (name, taken)


@pytest.mark.parametrize(
    "module", [info.name for info in pkgutil.walk_packages(llama_index_colqwen.__path__, "llama_index_colqwen.")]
)
def test_every_module_lists_names_that_it_has(module: str) -> None:
    try:
        loaded = importlib.import_module(module)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    for name in getattr(loaded, "__all__", []):
        assert hasattr(loaded, name)


@pytest.mark.parametrize("start", ["import llama_index_colqwen", "import llama_index_colqwen.cli"])
def test_importing_loads_nothing_heavy(start: str) -> None:
    heavy = (
        "torch transformers colpali_engine pymilvus milvus_lite onnxruntime rapidocr pypdfium2 wordfreq httpx anyio "
    )
    heavy += "fastapi uvicorn llama_index numpy PIL pydantic_core"
    code = f"{start}, sys; print(sorted({set(heavy.split())} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_llamaindex_loads_where_nodes_are_and_not_in_what_draws_embeds_stores_or_serves_pages() -> None:
    modules = "embedders.colqwen embedders.lexical embedders.remote reading.extraction serving.handler store"
    code = (
        f"import importlib, sys; [importlib.import_module('llama_index_colqwen.' + one) for one in {modules.split()}]"
    )
    code += "; print({'llama_index', 'pypdfium2'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_errors_are_also_the_builtins_they_are_documented_as() -> None:
    from llama_index_colqwen import errors

    tree = re.findall(r"(\w+Error)\s+\((\w+)\)", errors.__doc__ or "")
    assert len(tree) >= 7
    for name, builtin in tree:
        assert issubclass(getattr(errors, name), getattr(__import__("builtins"), builtin))
    for name in set(errors.__all__) - {"check_count", "in_one_line"}:
        assert issubclass(getattr(errors, name), errors.ColQwenError)


@pytest.mark.parametrize("name", ["ColQwenIndex", "MilvusPageStore", "EndpointEmbedder"])
def test_everything_that_waits_has_an_asynchronous_twin(name: str) -> None:
    public = getattr(llama_index_colqwen, name)
    # What makes an object, and an iterator that waits as it is used.
    made = {"as_retriever", "as_query_engine", "as_chat_engine", "from_documents", "from_existing", "stream_pages"}
    methods = {
        method: value
        for method, value in inspect.getmembers(public, inspect.isroutine)
        if not method.startswith("_") and method not in made
    }
    blocking = {method for method, value in methods.items() if not inspect.iscoroutinefunction(value)}
    assert len(blocking) >= 3
    for method in blocking:
        twin = methods[f"a{method}"]
        assert inspect.signature(twin).parameters == inspect.signature(methods[method]).parameters, method


def test_missing_dependency_error_survives_a_worker_process() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(MissingDependencyError("Reading scans needs OCR", "ocr")))
    assert str(error) == "Reading scans needs OCR. Install it with: pip install 'llama-index-colqwen[ocr]'"
    assert error.extra == "ocr"


@pytest.mark.parametrize("name", ["late_interaction.maxsim", "testing"])
def test_doctests_hold(name: str) -> None:
    import doctest

    module = importlib.import_module(f"llama_index_colqwen.{name}")
    result = doctest.testmod(module, extraglobs={"np": importlib.import_module("numpy")})
    assert (result.attempted, result.failed) == (1, 0)


def test_no_committed_file_names_a_registry_or_another_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    pictures_and_weights = (".pdf", ".png", ".webp", ".safetensors")
    files = [ROOT / name for name in listed.stdout.split() if not name.endswith(pictures_and_weights)]
    pattern = re.compile(r"https?://[a-z.]*(pypi|pythonhosted|npmjs)[a-z.]*/")
    assert [str(file) for file in files if file.exists() and pattern.search(file.read_text("utf-8"))] == []
    assert not (set(listed.stdout.split()) & {"uv.lock", "poetry.lock"})
