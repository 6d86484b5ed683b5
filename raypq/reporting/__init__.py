"""``raypq report``: what result files, models and stores tell, as one self-contained HTML page.

``findings`` looks at what is there, ``chapters`` turns it into tables and figures, ``charts`` draws
them, ``page`` makes the HTML. Every number comes from a file; the page names them all.
"""
