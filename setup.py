"""The list of packages; everything else is in pyproject.toml.

The example page lies in static/example/ of the checkout and is installed as `server/example/`. That mapping
cannot be combined with automatic package discovery in pyproject.toml, so it is made here. `server/assets.py`
finds the folder in both places.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["server", "server.*"]), "server.example"],
    package_dir={"server.example": "static/example"},
    package_data={"server.example": ["**/*"]},
)
