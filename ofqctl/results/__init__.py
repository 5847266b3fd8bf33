"""What commands and jobs return, one file for each command, and the parts that several results share.

A result is what ``--json`` prints, key by key; ``docs/schemas`` describes each in JSON's own terms.
"""
