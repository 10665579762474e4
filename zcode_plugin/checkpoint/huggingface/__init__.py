"""What an exported folder holds beside its weights: modules that need torch and transformers alone.

`zcode export` copies the other files of this folder as they are; they import nothing of this
package.
"""
