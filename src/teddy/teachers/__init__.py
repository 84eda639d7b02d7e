"""Networks, the one supervised loop that trains them, and pools of weak teachers (§3.3).

Imports core, settings, data and the objectives.
"""
