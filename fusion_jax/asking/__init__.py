"""Asking models many questions, and reading their answers strictly.

    from fusion_jax.asking.ask import Kept, ask
    from fusion_jax.asking.contract import Decoding, Question
    from fusion_jax.asking.local import from_folder
    from fusion_jax.asking.log import ReplyLog
    from fusion_jax.asking.server import Server

    questions = [Question.of("Which is longer, a mile or a kilometre? Answer with one word.")]
    with ReplyLog.of(folder) as log:                                 # what is answered once is not asked again
        outcomes = ask(from_folder("FOLDER"), questions, Decoding(max_tokens=8), Kept(log))
        other = ask(Server("http://127.0.0.1:8000/v1", "NAME"), questions, Decoding(max_tokens=8), Kept(log))

An outcome is a `Reply` or a `Failure`, in the place of its question. `asking.json_replies` reads objects from replies.
"""
