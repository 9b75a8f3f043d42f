"""What can be asked for and what can be said: the request schema, capabilities, jobs, errors.

Pydantic (with pydantic-settings) and the standard library only, so that a client, a checker or a
notebook can import it without torch, ray or fastapi; `tests/configs/test_imports.py` holds that.
"""
