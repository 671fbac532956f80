import sys
from pathlib import Path

import pytest

from lit_nlp.errors import BackboneError, DataError, UserError
from lit_nlp.packages import locate


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "some_package"
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('it is looked up, not imported')")
    (folder / "data" / "train.csv").write_text("text,label\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_file_or_folder_of_a_package_is_found_without_importing_it(package: Path) -> None:
    assert locate("package:some_package/data/train.csv", DataError) == package / "data" / "train.csv"
    assert locate("package:some_package/data", BackboneError) == package / "data"
    assert locate("package:some_package", BackboneError) == package
    assert "some_package" not in sys.modules


@pytest.mark.parametrize("error", [DataError, BackboneError])
@pytest.mark.parametrize(
    ("string", "message"),
    [
        (
            "package:missing_package/x",
            "no installed package is called 'missing_package'; install it (pip install missing-package) or name a file",
        ),
        ("package:sys/x", "no installed package is called 'sys'"),
        ("package:../x", "no installed package is called '..'"),
        ("package:a.b/x", "no installed package is called 'a.b'"),
        (
            "package:some_package/data/trian.csv",
            "the package 'some_package' holds no 'data/trian.csv'; did you mean 'train.csv'?",
        ),
        ("package:some_package/data/other", "the package 'some_package' holds no 'data/other'; look into"),
        ("package:some_package/gone/other", "the package 'some_package' holds no 'gone/other'; look into"),
    ],
)
def test_what_is_not_there_is_told_as_the_kind_of_error_asked_for(
    string: str, message: str, error: type[UserError], package: Path
) -> None:
    with pytest.raises(error) as raised:
        locate(string, error)
    assert str(raised.value).startswith(f"{string}: {message}")
