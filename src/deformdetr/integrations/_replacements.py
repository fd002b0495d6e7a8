"""Putting things in the place of others in modules and objects of other code, and putting the others back."""

import sys
from collections.abc import Callable, Mapping, MutableMapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ABSENT = object()


class Replacements:
    """Entries of namespaces that were replaced, in order."""

    def __init__(self) -> None:
        self._made: list[tuple[MutableMapping[str, Any], str, Any, Any]] = []

    def replace(self, namespace: MutableMapping[str, Any], name: str, value: Any) -> None:
        """Set one entry: of `vars` of a module or an object, or of `sys.modules`."""
        self._made.append((namespace, name, namespace.get(name, _ABSENT), value))
        namespace[name] = value

    def replace_everywhere(self, value: Any, other: Any) -> None:
        """Replace an object under whatever names the modules that are imported now hold it."""
        if value is other:
            return
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType):
                # Not `vars`, for which modules that load at first use would load.
                namespace = object.__getattribute__(module, "__dict__")
                for name in [name for name, held in list(namespace.items()) if held is value]:
                    self.replace(namespace, name, other)

    def place(self, module: ModuleType) -> None:
        """Let imports find a module, also as an attribute of its package where that is imported already."""
        self.replace(sys.modules, module.__name__, module)
        package, _, name = module.__name__.rpartition(".")
        if package in sys.modules:
            self.replace(vars(sys.modules[package]), name, module)

    def add(self, later: "Replacements") -> None:
        """Take over the replacements of another, to be undone with these."""
        self._made += later._made

    def undo(self) -> None:
        """Put everything back, but for what somebody else has replaced since."""
        while self._made:
            namespace, name, previous, value = self._made.pop()
            if namespace.get(name) is not value:
                continue
            if previous is _ABSENT:
                del namespace[name]
            else:
                namespace[name] = previous


class StandIn(ModuleType):
    """A module of a few functions in the place of a compiled one."""

    def __init__(self, name: str, functions: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(name, "Functions of deformdetr in the place of a compiled extension.")
        # Asked for by those who look whether a module exists before they import it.
        self.__spec__ = ModuleSpec(name, loader=None)
        vars(self).update(functions)
