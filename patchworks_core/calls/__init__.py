"""How public functions are called: names of parameters that scripts of other tools use.

What a parameter means is the function's own; nothing here looks at values but to translate them.
"""
