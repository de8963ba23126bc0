"""An OpenAI-compatible endpoint for one base and many subjects (`pvchat serve`).

    schema.py    what requests and answers look like
    videos.py    which files may be read
    engine.py    one base in memory, adapters on demand, videos read once
    worker.py    one request at a time, a queue of bounded length in front
    app.py       the HTTP side: errors, limits, streams

Importing this package is cheap; `app` needs FastAPI (`pip install 'pvchat[serve]'`).
"""
