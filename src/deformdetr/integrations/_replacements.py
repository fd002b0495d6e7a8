"""Replacing entries of foreign modules and objects, and restoring them."""

import sys
from collections.abc import Callable, Mapping, MutableMapping
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ABSENT = object()


class Replacements:
    """Replaced entries of namespaces, in order."""

    def __init__(self) -> None:
        self._made: list[tuple[MutableMapping[str, Any], str, Any, Any]] = []

    def replace(self, namespace: MutableMapping[str, Any], name: str, value: Any) -> None:
        """Set an entry of a namespace: `vars` of a module or an object, or `sys.modules`."""
        self._made.append((namespace, name, namespace.get(name, _ABSENT), value))
        namespace[name] = value

    def replace_everywhere(self, value: Any, other: Any) -> None:
        """Replace an object under every name in all imported modules."""
        if value is other:
            return
        for module in list(sys.modules.values()):
            if isinstance(module, ModuleType):
                # Not `vars`, which would make lazily imported modules load.
                namespace = object.__getattribute__(module, "__dict__")
                for name in [name for name, held in list(namespace.items()) if held is value]:
                    self.replace(namespace, name, other)

    def place(self, module: ModuleType) -> None:
        """Register a module for import, and set it as an attribute of its package if that is imported."""
        self.replace(sys.modules, module.__name__, module)
        package, _, name = module.__name__.rpartition(".")
        if package in sys.modules:
            self.replace(vars(sys.modules[package]), name, module)

    def add(self, later: "Replacements") -> None:
        """Append the replacements of another, so that `undo` restores both."""
        self._made += later._made

    def undo(self) -> None:
        """Restore all entries, except those that other code has replaced since."""
        while self._made:
            namespace, name, previous, value = self._made.pop()
            if namespace.get(name) is not value:
                continue
            if previous is _ABSENT:
                del namespace[name]
            else:
                namespace[name] = previous


class StandIn(ModuleType):
    """A module of functions that replaces a compiled extension."""

    def __init__(self, name: str, functions: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(name, "Functions of deformdetr in the place of a compiled extension.")
        # `importlib.util.find_spec` reads it.
        self.__spec__ = ModuleSpec(name, loader=None)
        vars(self).update(functions)
