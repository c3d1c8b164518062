"""The playground: a page at `/` to try the tasks of a server and to see what they are worth. Extra `ui` (NiceGUI).

    asking.py     what a visitor typed -> the service -> replies
    overview.py   the registry -> lines of the task table; metrics -> reliability
    spans.py      a text with spans -> pieces
    charts.py     bars, ranges, marked texts: numbers -> elements
    answers.py    replies -> elements, by kind of task
    panel.py, table.py, gate.py   the form, the task table, the question for a key
    page.py       all of it for one visitor
    mount.py      the page as routes of the server

Only the last three lines and the charts know NiceGUI.
"""
