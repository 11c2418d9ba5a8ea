"""Other people's libraries, one file each. Each takes what its library made (`from_...`) and gives back its kinds of
object (`to_...`). Nothing else of the package imports these, and no file imports another library's.
"""
