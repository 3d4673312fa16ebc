"""The life of a job, one file a chapter: recipe, admission, dispatch, steering, results, completion, views, control.

SQL is the source of truth (`bot.store`), the broker is the transport. Front ends and features call the classes here.
"""
