"""What gpubench says of the packages that it uses: found, too old, missing; and by which extra."""

from __future__ import annotations

from collections.abc import Iterator
from email.message import Message
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from gpubench import plugins
from gpubench.errors import Unavailable

REQUIRES = (
    "click>=8",
    "engine>=2.11; extra == 'engine'",
    "pillow>=10; extra == 'engine'",
    "engine>=2.11; extra == 'all'",
    "pillow>=10; extra == 'all'",
    "other>=1; extra == 'all'",
    "elsewhere>=1; sys_platform == 'never' and extra == 'all'",
)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What is installed, by name; gpubench declares `REQUIRES`."""
    about, found = Message(), {"click": "8.1"}
    for line in REQUIRES:
        about["Requires-Dist"] = line
    for extra in ("all", "engine"):
        about["Provides-Extra"] = extra

    def version(name: str) -> str:
        if name not in found:
            raise PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr(plugins, "metadata", lambda _: about)
    monkeypatch.setattr(plugins, "version", version)
    plugins._brings.cache_clear()
    yield found
    plugins._brings.cache_clear()


@pytest.mark.parametrize(
    ("found", "need", "serves"),
    [
        ("2.11.0", ">=2.11", True),
        ("2.10.9", ">=2.11", False),
        ("2.11.0a0+abc.nv26.01", ">=2.11", True),  # a vendor's build from before the release
        ("2.13.0+cpu", ">=2.11", True),
        ("10.12rc1", ">=10.12", True),
        ("2.9", ">=2.11", False),  # not as text
        ("unknown", ">=2.11", True),
        ("1.0", "", True),
    ],
)
def test_versions(found: str, need: str, serves: bool) -> None:
    assert plugins.serves(found, need) is serves


def test_what_is_missing_names_the_smallest_extra_that_brings_it(here: dict[str, str]) -> None:
    here["engine"] = "3"
    assert plugins.installed("engine", "click") == {"engine": "3", "click": "8.1"}
    for name, extra, remedy in (
        ("pillow", "", "pip install 'gpubench[engine]'"),
        ("pillow", "all", "pip install 'gpubench[all]'"),
        ("other", "", "pip install 'gpubench[all]'"),
        ("elsewhere", "", "pip install elsewhere"),
        ("unheard-of", "", "pip install unheard-of"),
    ):
        with pytest.raises(Unavailable, match=f"^{name} is not installed$") as caught:
            plugins.installed(name, extra=extra)
        assert caught.value.remedy == remedy


def test_what_is_too_old_names_the_version_that_would_do(here: dict[str, str]) -> None:
    here["engine"] = "2.9.1"
    with pytest.raises(Unavailable, match=r"^engine 2\.9\.1 is .* needs >=2\.11$"
                       ) as caught:  # fmt: skip
        plugins.installed("engine")
    assert caught.value.remedy == "pip install 'engine>=2.11'"
    here |= {"pillow": "9.5", "other": "1.0"}
    assert {k: lack.remedy for k, lack in plugins.outdated().items()} == {
        "engine": "pip install 'engine>=2.11'", "pillow": "pip install 'pillow>=10'",
    }  # fmt: skip


BUILDS = [
    ("2.11.0", "pip", "pip install --force-reinstall --no-deps vendors-engine==2.11.0"),
    ("2.11.0+cpu", "pip", "reinstall vendors-engine 2.11.0+cpu from where it came"),
    ("2.11.0", "conda", "reinstall vendors-engine 2.11.0 from where it came"),
    ("2.11.0", "", "reinstall vendors-engine 2.11.0 from where it came"),
]


@pytest.mark.parametrize(("number", "installer", "remedy"), BUILDS)
def test_no_remedy_puts_a_release_of_the_index_in_a_vendors_place(
    number: str, installer: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a module the package that it comes from is named, whatever that is called."""
    about = tmp_path / f"vendors_engine-{number}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Name: vendors-engine\nVersion: {number}\n")
    (about / "top_level.txt").write_text("engine_of_a_vendor\n")
    (about / "INSTALLER").write_text(f"{installer}\n")
    (tmp_path / "engine_of_a_vendor.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.builds.cache_clear()
    assert plugins.builds("engine_of_a_vendor") == ("vendors-engine",)
    assert plugins.package_of("engine_of_a_vendor", "engine") == "vendors-engine"
    assert plugins.reinstall("engine_of_a_vendor").endswith(remedy)
    monkeypatch.setattr(plugins, "_declared", {
        "engine": plugins._Declared(SpecifierSet(">=2.12")), "vendors-engine": plugins._Declared(),
    }.__getitem__)  # fmt: skip
    plugins.check("vendors-engine", number)
    with pytest.raises(Unavailable, match=r"^vendors-engine 2\.11\.0.* needs >=2\.12$") as caught:
        plugins.check("vendors-engine", number, of="engine")
    assert ("from where it came" in caught.value.remedy) is ("from where" in remedy)
    plugins.builds.cache_clear()


def test_of_a_module_that_is_not_here_the_package_is_named() -> None:
    assert plugins.builds("engine_of_nobody") == ()
    assert plugins.package_of("engine_of_nobody", "engine-of-nobody") == ""
    assert plugins.reinstall("PIL") != plugins.reinstall("pillow")


def test_a_module_that_cannot_be_found(here: dict[str, str]) -> None:
    here["engine"] = "3"
    missing = plugins.lacking(ModuleNotFoundError("No module named 'PIL'", name="PIL.Image"))
    assert missing is not None
    assert missing.remedy == "pip install 'gpubench[engine]'"
    for name in ("engine.part", "users_own"):  # there, and fit; nothing that we declare
        assert plugins.lacking(ModuleNotFoundError("No module", name=name)) is None
    assert plugins.lacking(ImportError("cannot import name 'x' from 'other'", name="other")) is None
    here["engine"] = "2.0"  # too old to have it
    old = plugins.lacking(ModuleNotFoundError("No module", name="engine.part"))
    assert old is not None
    assert old.remedy == "pip install 'engine>=2.11'"


def test_extras_that_are_here_whole(here: dict[str, str]) -> None:
    assert plugins.extras() == []
    here |= {"engine": "3", "pillow": "11"}
    assert plugins.extras() == ["engine"]
    here["other"] = "1"
    assert plugins.extras() == ["all"]  # which has the other's packages, too
