"""The functions of ``import ofqctl``: the jobs behind the commands, for models and images in memory as well."""
