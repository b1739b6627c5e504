"""verl_steer: plugins that teach verl to align vision-language models over whole conversations.

Importing this package is free: it loads neither torch, ray nor verl. What plugs into verl lives in
`verl_steer.plugin` and is loaded by verl itself through the `verl.plugins` entry points.
"""

__version__ = "0.1.0"
