"""The one thing that setup.cfg cannot say: two files belong at the root of the wheel."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# Python reads a .pth file only at the root of site-packages, and the module that it imports has to
# be found before an editable install's own finder is in place.
START_UP_FILES = ("zcode_compat.py", "zcode_compat.pth")


class build_py_with_start_up_files(build_py):  # noqa: N801 - named as setuptools names commands
    """Copies the start-up files to the root of the wheel, of an editable install's wheel too."""

    def run(self) -> None:
        super().run()
        for name in START_UP_FILES:
            self.mkpath(self._wheel_root)
            self.copy_file(name, str(Path(self._wheel_root, name)))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        start_up_files = [str(Path(self._wheel_root, name)) for name in START_UP_FILES]
        return super().get_outputs(include_bytecode) + start_up_files

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *START_UP_FILES]

    @property
    def _wheel_root(self) -> str:
        # An editable wheel takes nothing from build_lib; what belongs in it is "installed" there.
        if self.editable_mode:
            return str(self.get_finalized_command("install").install_lib)
        return str(self.build_lib)


setup(cmdclass={"build_py": build_py_with_start_up_files})
