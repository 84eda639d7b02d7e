"""Version of the package, apart from its public names, which no stage depends on."""

VERSION = "0.1.0"
