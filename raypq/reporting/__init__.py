"""``raypq report``: result files, models and stores as one self-contained HTML page.

``findings`` looks at what is there, ``chapters`` turns it into tables and figures, ``charts`` draws
them, ``page`` makes the HTML. Every number comes from a file; the page names them all.
"""
